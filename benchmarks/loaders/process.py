"""A loader in its own process, which measures the loader on request.

So each loader has its own libraries (Pillow-SIMD instead of Pillow), torch's workers are forked in
a process without DALI, and CPU time is that of the loader alone.
"""

import dataclasses
import importlib
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.loaders.case import Case, Start, Started

_POLL_S = 0.03
_IDLE_POLLS = 8


class LoaderProcess:
    """A process with the loader that the function `start` (module:function) starts.

    paths: folders whose packages come before the installed ones.
    """

    def __init__(self, start: str, paths: tuple[Path, ...] = ()) -> None:
        self._start = start
        path = os.pathsep.join([*map(str, paths), os.environ.get("PYTHONPATH", "")])
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "benchmarks.loaders.process", start],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            cwd=Path(__file__).parents[2],
        )

    def measure(self, case: Case, images: int) -> float:
        """Return the CPU ms for an image, of all threads and processes, over at least `images`.

        Raises RuntimeError when the process ends.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        print(json.dumps([dataclasses.asdict(case), images]), file=stdin, flush=True)
        answer = stdout.readline()
        if not answer:
            raise RuntimeError(f"{self._start} failed: its error is above")
        return float(answer)

    def close(self) -> None:
        self._process.communicate()


def measure(started: Started, images: int) -> float:
    """Return the CPU ms for an image over at least `images` images.

    From idle to idle: the queues are as full at the end as at the beginning, so the time is that of
    as many batches as were taken.
    """
    batches, workers = started
    cpu = _idle_cpu_seconds(workers)
    count = 0
    while count < images:
        count += len(next(batches))
    return 1e3 * (_idle_cpu_seconds(workers) - cpu) / count


def _idle_cpu_seconds(workers: list[int]) -> float:
    """Return `cpu_seconds` once the loader has filled its queues: no thread can run, and the CPU
    time has not changed, as it would with a thread that waits for Python's lock."""
    idle = 0
    spent = cpu_seconds(workers)
    while idle < _IDLE_POLLS:
        time.sleep(_POLL_S)
        spent, before = cpu_seconds(workers), spent
        busy = spent - before > _POLL_S / 5 or _is_running([os.getpid(), *workers])
        idle = 0 if busy else idle + 1
    return spent


def _is_running(processes: list[int]) -> bool:
    tasks = itertools.chain.from_iterable(Path(f"/proc/{pid}/task").iterdir() for pid in processes)
    asking = str(threading.get_native_id())
    return any(_can_run(task) for task in tasks if task.name != asking)


def _can_run(thread: Path) -> bool:
    try:
        return _fields(thread)[0] in "RD"
    except (FileNotFoundError, ProcessLookupError):  # it has just ended
        return True


def _fields(process: Path) -> list[str]:
    """Return the fields of a process or thread after its name: proc(5), from `state` on."""
    return (process / "stat").read_text().rsplit(")", 1)[1].split()


def cpu_seconds(workers: list[int]) -> float:
    """Return the CPU seconds of this process and of `workers`, user and system."""
    ticks = 0
    for pid in workers:
        fields = _fields(Path(f"/proc/{pid}"))
        ticks += int(fields[11]) + int(fields[12])
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def _serve(start: Start, requests: Iterator[str]) -> Iterator[float]:
    case: Case | None = None
    started: Started | None = None
    for line in requests:
        fields, images = json.loads(line)
        asked = Case(**fields)
        if asked != case or started is None:
            started = None  # ends the workers of the case before
            started = start(asked)
            next(started[0])  # some fill their queues only then
            case = asked
        yield measure(started, images)


def _main(name: str) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the output of libraries is not an answer
    module, function = name.split(":")
    start = getattr(importlib.import_module(module), function)
    for answer in _serve(start, sys.stdin):
        print(answer, file=answers, flush=True)


if __name__ == "__main__":
    _main(sys.argv[1])
