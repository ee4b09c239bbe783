"""Two machines simulated on this one: network namespaces with their own host name, address and
link.

They share the processors and the file system. They cannot resolve each other's names.
"""

import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.support.launching import Launch, free_port

_PREFIX = "fastdeit-"  # followed by the id of the process that created the namespace
_CABLE = "cable"


@dataclass(frozen=True)
class Machine:
    """One of two simulated machines; its name is also its namespace's and its host name."""

    name: str
    address: str

    @property
    def inside(self) -> list[str]:
        """Return the words before a command that run it on this machine."""
        become = ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', self.name]
        return ["ip", "netns", "exec", self.name, *become]

    def processes(self) -> list[psutil.Process]:
        """Return the processes on this machine."""
        found = []
        for pid in _ip("netns", "pids", self.name).split():
            with contextlib.suppress(psutil.NoSuchProcess):
                found.append(psutil.Process(int(pid)))
        return found

    def kill(self) -> None:
        """Send SIGKILL to all processes of the machine."""
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def set_link(self, state: str) -> None:
        """Set the link to the other machine `up` or `down`. When it is down, no machine gets an
        error: what is sent waits for an answer."""
        _ip("-n", self.name, "link", "set", _CABLE, state)


@contextlib.contextmanager
def two_machines() -> Iterator[tuple[Machine, Machine]]:
    """Set up two machines with a link between them. Raise PermissionError where the system does not
    allow it."""
    _remove_abandoned()
    left, right = (Machine(f"{_PREFIX}{os.getpid()}-{side}", f"10.77.0.{side}") for side in (1, 2))
    try:
        for machine in (left, right):
            _ip("netns", "add", machine.name)
            _ip("-n", machine.name, "link", "set", "lo", "up")
        to_right = ("peer", "name", _CABLE, "netns", right.name)
        _ip("-n", left.name, "link", "add", _CABLE, "type", "veth", *to_right)
        for machine in (left, right):
            _ip("-n", machine.name, "addr", "add", f"{machine.address}/24", "dev", _CABLE)
            machine.set_link("up")
        yield left, right
    finally:
        for machine in (left, right):
            _remove(machine.name)


def launch_on(
    machines: Sequence[Machine],
    slots: Sequence[int],
    folder: Path,
    argv: list[str],
    faults: str,
    only: int | None = None,
) -> list[Launch]:
    """Start a run over machines, with DeepSpeed's launcher on each, or on number `only` alone.

    slots: processes on each machine.
    """
    hosts = folder.with_name("hosts")
    hosts.write_text(
        "".join(
            f"{machine.name} slots={count}\n"
            for machine, count in zip(machines, slots, strict=True)
        )
    )
    port = free_port()  # here, which says nothing of there; but nothing else runs there
    launches = []
    for place, machine in enumerate(machines):
        if only not in (None, place):
            continue
        node = ("--no_ssh", "--node_rank", str(place))
        where = ("--hostfile", str(hosts), *node, "--master_addr", machines[0].address)
        launches.append(Launch(folder, argv, faults, port, where=where, inside=machine.inside))
    return launches


def _ip(*words: str) -> str:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode:
        raise PermissionError(f"`ip {' '.join(words)}`: {done.stderr.strip()}")
    return done.stdout


def _remove(name: str) -> None:
    with contextlib.suppress(PermissionError):  # it does not exist
        for pid in _ip("netns", "pids", name).split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        _ip("netns", "del", name)


def _remove_abandoned() -> None:
    """Remove the namespaces of tests that were killed."""
    folder = Path("/run/netns")
    for path in folder.glob(f"{_PREFIX}*") if folder.is_dir() else ():
        made_by = re.fullmatch(rf"{_PREFIX}(\d+)-\d", path.name)
        if made_by and not psutil.pid_exists(int(made_by[1])):
            _remove(path.name)
