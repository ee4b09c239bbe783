"""Real launches: `deepspeed` in its own process session, and its living processes."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

from fastdeit.storage.jsonl import read_json_lines

ROOT = Path(__file__).parents[2]
FLAGS = (
    "--model deit_tiny_distilled_patch16_224 --input-size 32 --patch-size 8 --embed-dim 32 "
    "--depth 2 --num-heads 2 --distillation-type none --batch-size 8 --epochs 10 "
    "--warmup-epochs 1 --lr 0.05 --drop-path 0.3 --log-steps 1 --eval-epochs 5"
).split()
TIMED = {
    *("time", "images_per_s", "data_wait", "tflops", "mfu", "memory_gb"),
    *("seconds_left", "seconds_elapsed"),
}
"""Fields of the log that depend on the clock."""
FOREIGN = {
    *("PYTHONPATH", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "LOCAL_WORLD_SIZE"),
    *("MASTER_ADDR", "MASTER_PORT"),
}
"""Variables of the process group that the test's own process has joined."""


def free_port() -> int:
    """Return a port that no process listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def clean_environment() -> dict[str, str]:
    """Return the environment of a CPU process outside this one's process group."""
    kept = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    return kept | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def launcher_command(*where: str, port: int = 0) -> list[str]:
    """Return the command line of DeepSpeed's launcher, up to the script; where: its options."""
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "-q", *where]
    return [*launcher, "--master_port", str(port or free_port())]


class Launch:
    """Run under the `deepspeed` launcher, with its output in a file beside its folder.

    faults: the first argument of tests/support/faulty.py; where: the launcher's options;
    inside: a command that runs the launcher.
    """

    def __init__(
        self,
        folder: Path,
        argv: list[str],
        faults: str = "none",
        port: int = 0,
        environment: dict[str, str] | None = None,
        where: Sequence[str] = ("--num_accelerators", "2"),
        inside: Sequence[str] = (),
    ) -> None:
        self.folder = folder
        self.log = folder.with_name(f"{folder.name}-{time.monotonic_ns()}.log")
        script = str(ROOT / "tests" / "support" / "faulty.py")
        launcher = launcher_command("--no_local_rank", *where, port=port)
        command = [*inside, *launcher, script, faults]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*command, *argv, "--output-dir", str(folder)],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=clean_environment() | (environment or {}),
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        return self.log.read_text()

    def alive(self) -> list[psutil.Process]:
        """Return the processes of the run, from this launch and any other in its folder."""
        return processes_of(self.folder)

    def find(self, script: str) -> list[psutil.Process]:
        """Return the processes that run `script`, the oldest first.

        script: `deepspeed.launcher.launch` (one process) or `faulty.py` (the ranks).
        """
        found = []
        for process in self.alive():
            if any(word.endswith(script) for word in _arguments(process)[:4]):
                found.append(process)
        return sorted(found, key=lambda process: (process.create_time(), process.pid))

    def until(self, condition: Callable[[], object], limit_s: float = 150) -> float:
        """Wait for a condition; return the seconds that it took.

        Raise AssertionError with the run's output after `limit_s`.
        """
        began = time.monotonic()
        while not condition():
            assert time.monotonic() - began < limit_s, self.output
            time.sleep(0.2)
        return time.monotonic() - began

    def wait(self, limit_s: float = 150) -> int:
        """Wait for the launcher; return its exit code.

        Raise AssertionError unless every process of the run ends within 10 s of it.
        """
        try:
            code = self.process.wait(limit_s)
            self.until(lambda: not self.alive(), 10)  # a rank writes its report
        except (subprocess.TimeoutExpired, AssertionError) as error:
            raise AssertionError(f"still running: {self.alive()}\n{self.output}") from error
        finally:
            for process in self.alive():
                process.kill()
        return code


def processes_of(folder: Path) -> list[psutil.Process]:
    """Return the processes whose command line names the folder, or a path in it."""
    return [
        process
        for process in psutil.process_iter()
        if any(str(folder) in word for word in _arguments(process))
    ]


def steps_done(folder: Path) -> int:
    """Return the last step in metrics.jsonl."""
    return max((line["step"] for line in read_json_lines(folder / "metrics.jsonl")), default=0)


def assert_lines_near(mine: list[dict[str, Any]], theirs: list[dict[str, Any]], rel: float) -> None:
    """Assert that two logs have the same lines, with values within a relative `rel`.

    The gradient norm depends more on the order of sums: its bound is a hundred times `rel`. The
    fields of `TIMED` are not compared.
    """
    assert len(mine) == len(theirs)
    for line, wanted in zip(mine, theirs, strict=True):
        assert set(line) == set(wanted), line["step"]
        for name in set(wanted) - TIMED - {"by_step"}:
            allowed = rel * (100 if name.startswith("grad_norm") else 1)
            found = line[name]
            value = wanted[name]
            near = found == value or abs(found - value) <= allowed * abs(value)
            assert near, (line["step"], name, found, value)


def _arguments(process: psutil.Process) -> list[str]:
    try:
        return [] if process.status() == psutil.STATUS_ZOMBIE else process.cmdline()
    except psutil.Error:
        return []
