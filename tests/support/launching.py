"""Real launches for tests: `deepspeed` in a session of its own, and what is alive of it."""

import os
import signal
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
    "--model deit_tiny_distilled_patch16_224 --input-size 32 --patch-size 8 --embed-dim 32 --depth 2 --num-heads 2 "
    "--distillation-type none --batch-size 8 --epochs 10 --warmup-epochs 1 --lr 0.05 --drop-path 0.3 "
    "--log-steps 1 --eval-epochs 5"
).split()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Launch:
    """A run under the `deepspeed` launcher; its output goes to a file beside its folder.

    faults: as tests/support/faulty.py takes them; where: the launcher's options; inside: a command
    that runs the launcher.
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
        self.folder, self.log = folder, folder.with_name(f"{folder.name}-{time.monotonic_ns()}.log")
        launcher = [
            *inside,
            sys.executable,
            "-m",
            "deepspeed.launcher.runner",
            "-q",
            "--no_local_rank",
            *where,
        ]
        command = [
            *launcher,
            "--master_port",
            str(port or free_port()),
            str(ROOT / "tests" / "support" / "faulty.py"),
            faults,
        ]
        inherited = {name: value for name, value in os.environ.items() if name not in FOREIGN}
        inherited |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        if (
            signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        ):  # in the background of a shell; children would ignore it too
            signal.signal(signal.SIGINT, signal.default_int_handler)
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*command, *argv, "--output-dir", str(folder)],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=inherited | (environment or {}),
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        return self.log.read_text()

    def alive(self) -> list[psutil.Process]:
        """The processes of the run, of this launch and any other in its folder."""
        return processes_of(self.folder)

    def find(self, script: str) -> list[psutil.Process]:
        """Those of them that run `script`, by start: `deepspeed.launcher.launch` (one) or
        `faulty.py` (the ranks)."""
        found = [
            process
            for process in self.alive()
            if any(word.endswith(script) for word in _arguments(process)[:4])
        ]
        return sorted(found, key=lambda process: (process.create_time(), process.pid))

    def until(self, condition: Callable[[], object], limit_s: float = 150) -> float:
        """Waits for a condition; seconds that took. Fails with the output when the limit is over or
        the run has ended."""
        began = time.monotonic()
        while not condition():
            assert time.monotonic() - began < limit_s, self.output
            time.sleep(0.2)
        return time.monotonic() - began

    def wait(self, limit_s: float = 150) -> int:
        """The launcher's exit code, after every process of the run has ended, at the latest 5 s
        after it."""
        try:
            code = self.process.wait(limit_s)
            self.until(lambda: not self.alive(), 5)
        except (subprocess.TimeoutExpired, AssertionError) as error:
            raise AssertionError(f"still there: {self.alive()}\n{self.output}") from error
        finally:
            for process in self.alive():
                process.kill()
        return code


def processes_of(folder: Path) -> list[psutil.Process]:
    """Those whose command line names the folder, or what is in it."""
    return [
        process
        for process in psutil.process_iter()
        if any(str(folder) in word for word in _arguments(process))
    ]


def steps_done(folder: Path) -> int:
    """As far as the log tells."""
    return max((line["step"] for line in read_json_lines(folder / "metrics.jsonl")), default=0)


def assert_lines_near(mine: list[dict[str, Any]], theirs: list[dict[str, Any]], rel: float) -> None:
    """Two records of metrics.jsonl: the same lines, with numbers as near as `rel` says.

    The gradient's norm, which depends more on the order of sums, may differ a hundred times as
    much; the rate is the machine's.
    """
    assert len(mine) == len(theirs)
    for line, wanted in zip(mine, theirs, strict=True):
        assert set(line) == set(wanted), line["step"]
        for name in set(wanted) - {"images_per_s"}:
            allowed = rel * (100 if name.startswith("grad_norm") else 1)
            near = line[name] == wanted[name] or abs(line[name] - wanted[name]) <= allowed * abs(
                wanted[name]
            )
            assert near, (line["step"], name, line[name], wanted[name])


FOREIGN = {"PYTHONPATH", "RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"}


def _arguments(process: psutil.Process) -> list[str]:
    try:
        return [] if process.status() == psutil.STATUS_ZOMBIE else process.cmdline()
    except psutil.Error:
        return []
