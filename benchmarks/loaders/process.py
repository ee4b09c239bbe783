"""A loader in a process of its own, which measures it each time it is asked.

So each has its own libraries (Pillow-SIMD in the place of Pillow), torch's workers are forked where
no DALI runs, and CPU time is that of the loader alone.
"""

import dataclasses
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.loaders.case import Case, Start, Started

_SETTLING = 6  # batches: those that wait in the queues, two for each of two workers, and two more


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

    def measure(self, case: Case, images: int) -> tuple[float, float]:
        """Return CPU ms an image, of all threads and processes, and images/s, over at least
        `images` images.

        Raises RuntimeError when the process ends.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        print(json.dumps([dataclasses.asdict(case), images]), file=stdin, flush=True)
        answer = stdout.readline()
        if not answer:
            raise RuntimeError(f"{self._start} failed: its error is above")
        cpu_ms, speed = json.loads(answer)
        return cpu_ms, speed

    def close(self) -> None:
        self._process.communicate()


def measure(started: Started, images: int) -> tuple[float, float]:
    """Return CPU ms an image and images/s over at least `images` images.

    A measurement begins when a batch is out, after some that settle the queues, and ends when the
    same worker has finished another: workers are then as far in their next batches as before.
    """
    batches, workers = started
    for _ in range(_SETTLING):
        next(batches)
    wall = time.perf_counter()
    cpu = cpu_seconds(workers)
    count = 0
    while count < images:
        count += sum(len(next(batches)) for _ in range(max(1, len(workers))))
    spent = cpu_seconds(workers) - cpu
    return 1e3 * spent / count, count / (time.perf_counter() - wall)


def cpu_seconds(workers: list[int]) -> float:
    """Return the CPU seconds of this process and of `workers`, user and system."""
    ticks = 0
    for pid in workers:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        ticks += int(fields[11]) + int(fields[12])
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def _serve(start: Start, requests: Iterator[str]) -> Iterator[tuple[float, float]]:
    case: Case | None = None
    started: Started | None = None
    for line in requests:
        fields, images = json.loads(line)
        asked = Case(**fields)
        if asked != case or started is None:
            started = None  # ends the workers of the case before
            started = start(asked)
            case = asked
        yield measure(started, images)


def _main(name: str) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    torch.set_num_threads(1)
    module, function = name.split(":")
    start = getattr(importlib.import_module(module), function)
    for answer in _serve(start, sys.stdin):
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    _main(sys.argv[1])
