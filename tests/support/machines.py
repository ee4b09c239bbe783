"""Machines simulated on this one: network namespaces with their own host name and address, whose
cables lead to one switch.

They share the processors and the file system. They cannot resolve each other's names.
"""

import contextlib
import ctypes
import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.support.launching import Launch, free_port

_PREFIX = "fastdeit-"  # followed by the id of the process that created the namespace
_CABLE = "cable"
_NOWHERE = "02:00:00:00:00:01"  # an address that no network card has
_NEW_UTS, _NEW_NET = 0x04000000, 0x40000000  # linux/sched.h


@dataclass(frozen=True)
class Machine:
    """One of the simulated machines; its name is also its namespace's and its host name."""

    name: str
    address: str

    @property
    def inside(self) -> list[str]:
        """Return the words before a command that run it on this machine."""
        become = ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', self.name]
        return ["ip", "netns", "exec", self.name, *become]

    def enter(self) -> None:
        """Move this process to the machine."""
        libc = ctypes.CDLL(None, use_errno=True)
        with Path("/run/netns", self.name).open() as namespace:
            if libc.setns(namespace.fileno(), _NEW_NET) or libc.unshare(_NEW_UTS):
                raise OSError(ctypes.get_errno(), f"cannot move to {self.name}")
        socket.sethostname(self.name)

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

    def lose_packets_to(self, other: "Machine") -> None:
        """Send what is for the other machine nowhere, until `Network.repair`; what comes from it
        still arrives."""
        nowhere = ("lladdr", _NOWHERE, "nud", "permanent")
        _ip("-n", self.name, "neigh", "replace", other.address, *nowhere, "dev", _CABLE)


class Network:
    """Machines and the switch between them, a namespace with two bridges: a machine reaches those
    on its own bridge. No machine gets an error when another one is cut off: what is sent waits for
    an answer."""

    def __init__(self, count: int) -> None:
        names = [f"{_PREFIX}{os.getpid()}-{number}" for number in range(1, count + 1)]
        self.machines = tuple(
            Machine(name, f"10.77.0.{number}") for number, name in enumerate(names, 1)
        )
        self._switch = f"{_PREFIX}{os.getpid()}-switch"

    def build(self) -> None:
        """Create everything. Raise PermissionError where the system does not allow it."""
        _ip("netns", "add", self._switch)
        for bridge in ("near", "far"):
            _ip("-n", self._switch, "link", "add", bridge, "type", "bridge")
            _ip("-n", self._switch, "link", "set", bridge, "up")
        for machine in self.machines:
            self._connect(machine)
        self.repair()

    def _connect(self, machine: Machine) -> None:
        name = machine.name
        port = ("peer", "name", _port_of(machine), "netns", self._switch)
        _ip("netns", "add", name)
        _ip("-n", name, "link", "add", _CABLE, "type", "veth", *port)
        _ip("-n", name, "addr", "add", f"{machine.address}/24", "dev", _CABLE)
        for device in ("lo", _CABLE):
            _ip("-n", name, "link", "set", device, "up")
        _ip("-n", self._switch, "link", "set", _port_of(machine), "up")

    def cut_off(self, *machines: Machine) -> None:
        """Separate machines, which still reach each other, from the rest."""
        for machine in machines:
            _ip("-n", self._switch, "link", "set", _port_of(machine), "master", "far")

    def repair(self) -> None:
        """Connect all machines with each other."""
        for machine in self.machines:
            _ip("-n", self._switch, "link", "set", _port_of(machine), "master", "near")
            _ip("-n", machine.name, "neigh", "flush", "nud", "permanent", "dev", _CABLE)

    def remove(self) -> None:
        """Remove all machines and kill their processes."""
        for name in (*(machine.name for machine in self.machines), self._switch):
            _remove(name)


@contextlib.contextmanager
def connected_machines(count: int) -> Iterator[Network]:
    """Set up machines and their network; skip the test where the system does not allow it."""
    network = Network(count)
    try:
        try:
            _remove_abandoned()
            network.build()
        except OSError as error:
            pytest.skip(f"no network namespaces here: {error}")
        yield network
    finally:
        network.remove()


def launch_on(
    machines: Sequence[Machine],
    slots: Sequence[int],
    folder: Path,
    argv: list[str],
    faults: str,
    only: Sequence[int] | None = None,
) -> list[Launch]:
    """Start a run over machines, with DeepSpeed's launcher on each, or on the numbers `only` alone.

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
        if only is not None and place not in only:
            continue
        node = ("--no_ssh", "--node_rank", str(place))
        where = ("--hostfile", str(hosts), *node, "--master_addr", machines[0].address)
        launches.append(Launch(folder, argv, faults, port, where=where, inside=machine.inside))
    return launches


def _port_of(machine: Machine) -> str:
    return f"port-{machine.name.rpartition('-')[2]}"


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
        made_by = re.fullmatch(rf"{_PREFIX}(\d+)-\w+", path.name)
        if made_by and not psutil.pid_exists(int(made_by[1])):
            _remove(path.name)
