"""Who started this process: a launcher's rank must not outlive its launcher.

`deepspeed` starts a runner, which starts launch.py, which starts the ranks. A SIGTERM or SIGKILL to
the runner, or a SIGKILL to launch.py, ends neither the ranks nor, always, in an error (DeepSpeed
0.19.8): they would train on as orphans. Import this before anything slow: what it looks at is who
was there first.
"""

import contextlib
import ctypes
import itertools
import os
import signal

import psutil

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Launcher:
    """The launcher of this process: its parent, and above it DeepSpeed's runner, or sshd's process
    for a runner elsewhere."""

    def __init__(self) -> None:
        self._chain = [os.getppid()]
        while (above := _parent_of(self._chain[-1])) and "deepspeed" in _command(above):
            self._chain.append(above)
        if above and _command(above).startswith("sshd"):
            self._chain.append(above)
        self._too_late = "CROSS_RANK" in os.environ and self._is_adopted(
            above
        )  # a variable that only launch.py sets

    def _is_adopted(self, above: int | None) -> bool:
        """Whether launch.py, or the runner above it, ended before this process looked: init or
        another reaper has its child.

        Who does not lead its session is in that of its parent, and the leader of a group of
        processes started it.
        """
        launcher = self._chain[0]
        if "deepspeed.launcher.launch" not in _command(launcher):
            return True
        if len(self._chain) > 1 or not above:
            return False
        with contextlib.suppress(ProcessLookupError):
            strangers = os.getsid(launcher) not in (launcher, os.getsid(above))
            return strangers or not psutil.pid_exists(os.getpgid(launcher))
        return True

    def has_died(self) -> bool:
        """Whether one of them has ended. A dead process's children get another parent, which the
        system tells at once."""
        if self._too_late or os.getppid() != self._chain[0]:
            return True
        return any(_parent_of(pid) != above for pid, above in itertools.pairwise(self._chain))


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


LAUNCHER: Launcher | None = None
"""Of a process that a launcher started, which RANK in the environment tells; None: a person or a
script started it alone."""
if "RANK" in os.environ:
    _die_with_parent()
    LAUNCHER = Launcher()
