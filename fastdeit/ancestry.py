"""Who started this process: a launcher's rank must not outlive its launcher.

`deepspeed` starts a runner, which starts launch.py, which starts the ranks. A SIGTERM or SIGKILL to the runner, or a SIGKILL
to launch.py, ends neither the ranks nor, always, in an error (DeepSpeed 0.19.8): they would train on as orphans. Import this
before anything slow: what it looks at is who was there first.
"""

import contextlib
import ctypes
import os
import signal

import psutil

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Ancestors:
    """The launcher of this process: its parent, and that one's parent if it is DeepSpeed's runner."""

    def __init__(self) -> None:
        self._parent = os.getppid()
        runner = _parent_of(self._parent)
        self._runner = runner if runner is not None and "deepspeed" in _command(runner) else None

    def gone(self) -> bool:
        """Whether one of them has ended. A dead process's children get another parent, which the system tells at once."""
        if os.getppid() != self._parent:
            return True
        return self._runner is not None and _parent_of(self._parent) != self._runner


def _parent_of(pid: int) -> int | None:
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid).ppid()
    return None


def _command(pid: int) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(psutil.Process(pid).cmdline())
    return ""


def _die_with_parent() -> None:
    """Has the system send SIGTERM when the parent ends; on Linux only."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


LAUNCHER: Ancestors | None = None
"""Of a process that a launcher started, which RANK in the environment tells; None: a person or a script started it alone."""
if "RANK" in os.environ:
    _die_with_parent()
    LAUNCHER = Ancestors()
