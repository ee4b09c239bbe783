"""Detection of a dead launcher, so that no rank is orphaned.

`deepspeed` starts a runner, which starts launch.py, which starts the ranks. SIGTERM or SIGKILL to
the runner, or SIGKILL to launch.py, neither ends the ranks nor always shows as an error (DeepSpeed
0.19.8): they would continue to train as orphans.
"""

import contextlib
import ctypes
import itertools
import os
import signal

import psutil

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def attach() -> "Launcher | None":
    """Tie this process to its launcher: ask the system for SIGTERM when the parent ends, and return
    the launcher to watch; None if there is none (no RANK in the environment).

    Call it before any slow import: the launcher is found through the parent of this process, and a
    dead process is nobody's parent.
    """
    if "RANK" not in os.environ:
        return None
    die_with_parent()
    return Launcher()


class Launcher:
    """The launcher of this process: its parent, and above it DeepSpeed's runner, or the sshd
    process of a runner on another machine."""

    def __init__(self) -> None:
        self._chain = [os.getppid()]
        while (above := _parent_of(self._chain[-1])) and "deepspeed" in _command(above):
            self._chain.append(above)
        if above and _command(above).startswith("sshd"):
            self._chain.append(above)
        started_by_launch = "CROSS_RANK" in os.environ  # only launch.py sets it
        self._died_before = started_by_launch and self._is_adopted(above)

    def _is_adopted(self, above: int | None) -> bool:
        """Return True if launch.py, or the runner above it, had died before this process looked:
        then init or another reaper is the parent of what it started.

        A process that does not lead its session shares its parent's, and the leader of a process
        group started it.
        """
        launcher = self._chain[0]
        if "deepspeed.launcher.launch" not in _command(launcher):
            return True
        if len(self._chain) > 1 or not above:
            return False
        with contextlib.suppress(ProcessLookupError):
            is_foreign = os.getsid(launcher) not in (launcher, os.getsid(above))
            return is_foreign or not psutil.pid_exists(os.getpgid(launcher))
        return True

    def has_died(self) -> bool:
        """Return True if a process of the launcher has died: its child has another parent then."""
        if self._died_before or os.getppid() != self._chain[0]:
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


def die_with_parent(by: signal.Signals = signal.SIGTERM) -> None:
    """Ask the system to send this signal when the parent ends; Linux only."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, by)
