"""The costs of child processes: their time, and the memory, files and threads of all processes that
they start."""

import contextlib
import resource
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from fastdeit.distributed.environment import make_child_environment

_EVERY_S = 0.5
_SHOWN = 3000
"""The number of characters of a log in an error."""
_PARTS = 10


@dataclass(frozen=True)
class Cost:
    """The costs of processes together, with all processes that they started.

    files, threads: the largest numbers at one time. asked: bytes that they requested, also from the
    page cache; disk: those read from the disk. moments: float64 (n, 3), UNIX time, CPU seconds so
    far and resident MiB, at least twice a second; memory that several processes share is counted in
    each.
    """

    wall_s: float
    cpu_s: float
    files: int
    threads: int
    asked: int
    disk: int
    written: int
    moments: np.ndarray

    @property
    def peak_mib(self) -> float:
        return float(self.moments[:, 2].max(initial=0))

    def swing_pct(self, begin: float, end: float) -> float:
        """Return half the difference of the largest and the smallest memory between two UNIX times,
        in percent of their middle; each value is the mean of a tenth of the time."""
        times, memory = self.moments[:, 0], self.moments[:, 2]
        edges = np.linspace(begin, end, _PARTS + 1)
        parts = [memory[(times >= a) & (times < b)] for a, b in zip(edges, edges[1:], strict=False)]
        means = [part.mean() for part in parts if len(part)]
        return 100 * (max(means) - min(means)) / (max(means) + min(means)) if means else 0.0

    def time_at(self, share: float) -> float:
        """Return the UNIX time at which a share of the whole time had passed."""
        first, last = self.moments[[0, -1], 0]
        return float(first + share * (last - first))

    def cpu_at(self, times: Sequence[float]) -> np.ndarray:
        """Return float64 (n,): the CPU seconds until each of these UNIX times."""
        return np.interp(times, self.moments[:, 0], self.moments[:, 1])


def watch(commands: Sequence[Sequence[str]], log: Path) -> Cost:
    """Run commands at the same time, with their output in `log`, and return their costs.

    Raises RuntimeError with the end of the log if one fails.
    """
    own = psutil.Process()
    io_before = own.io_counters()
    cpu_before = _cpu_of_children()
    started = time.time()
    with log.open("wb") as file:
        children = [_start(command, file.fileno()) for command in commands]
        moments = np.array(list(_follow(children)))
    failed = [child for child in children if child.returncode]
    if failed:
        text = log.read_text(errors="replace")[-_SHOWN:]
        raise RuntimeError(f"{failed[0].args!r} ends with {failed[0].returncode}\n{text}")
    io = own.io_counters()
    return Cost(
        wall_s=time.time() - started,
        cpu_s=_cpu_of_children() - cpu_before,
        files=int(moments[:, 3].max()),
        threads=int(moments[:, 4].max()),
        asked=io.read_chars - io_before.read_chars,
        disk=io.read_bytes - io_before.read_bytes,
        written=io.write_chars - io_before.write_chars,
        moments=moments[:, :3],
    )


def _start(command: Sequence[str], log: int) -> subprocess.Popen[bytes]:
    environment = make_child_environment() | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=log, stderr=log, env=environment)


def _cpu_of_children() -> float:
    """Return the CPU seconds of all child processes that have ended, with their own children."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _follow(children: Sequence[subprocess.Popen[bytes]]) -> Iterator[tuple[float, ...]]:
    """Yield time, CPU seconds, MiB, open files and threads of all processes until the last of
    `children` has ended."""
    roots = [psutil.Process(child.pid) for child in children]
    started = time.time()
    while True:
        are_alive = [child.poll() is None for child in children]
        yield (time.time(), *_measure(roots))
        if not any(are_alive):
            return
        # more often at first, as a short command would otherwise be measured once, too early
        time.sleep(min(_EVERY_S, 0.02 + 0.1 * (time.time() - started)))


def _measure(roots: Sequence[psutil.Process]) -> np.ndarray:
    """Return CPU seconds, MiB, open files and threads of processes and all that they started."""
    total = np.zeros(4)
    for root in roots:
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in (root, *root.children(recursive=True)):
                total += _measure_one(process)
    return total


def _measure_one(process: psutil.Process) -> np.ndarray:
    with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied), process.oneshot():
        cpu_s = sum(process.cpu_times()[:4])
        mib = process.memory_info().rss / 2**20
        return np.array([cpu_s, mib, process.num_fds(), process.num_threads()])
    return np.zeros(4)
