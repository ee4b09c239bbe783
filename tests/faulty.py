"""fastdeit/train.py with faults planted, for the launcher: `deepspeed tests/faulty.py KIND:RANK:STEP[,...] FLAGS...`

RANK may be `*`. STEP: how many optimizer steps are done when it happens, in the next one; for `slow`: milliseconds added to
every step.
The faults from `save` on last some seconds, and leave a file `reached-KIND` beside the run folder as soon as they begin.
"""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path[0] = str(ROOT)

import fastdeit.ancestry  # noqa: F401, I001  # first, as train.py has it
from fastdeit import build
from fastdeit.data.loader import EvalLoader
from fastdeit.distributed import leave
from fastdeit.engine import Trainer
from fastdeit.run import train_command

RANK = int(os.environ["RANK"])


def replaces(owner: object, name: str) -> Callable[[Callable[..., Any]], None]:
    """Puts the decorated function in the place of another."""
    return lambda function: setattr(owner, name, function)


def fail() -> None:
    raise RuntimeError("planted")


def fail_to_return() -> None:
    time.sleep(600)


def hold_the_lock() -> None:
    """Python's, in C, where no signal wakes it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    ctypes.PyDLL("libc.so.6").sleep(600)


def in_step(fault: Callable[[], object], step: int | None) -> None:
    original = Trainer.train_step

    @replaces(Trainer, "train_step")
    def train_step(self: Trainer, batches: Iterable[Any]) -> Any:
        return original(self, faulty(batches) if step is None or self.step == step else batches)

    def faulty(batches: Iterable[Any]) -> Iterator[Any]:
        for batch in batches:
            fault()
            yield batch


def linger(reached: Callable[[], None], seconds: float = 2.0) -> None:
    reached()
    time.sleep(seconds)


def slow_save(reached: Callable[[], None]) -> None:
    original = os.fsync

    @replaces(os, "fsync")
    def fsync(descriptor: int) -> None:
        if "/checkpoints" in os.readlink(f"/proc/self/fd/{descriptor}"):
            linger(reached, 0.2)
        original(descriptor)


def slow_evaluation(reached: Callable[[], None]) -> None:
    original = EvalLoader.__iter__

    @replaces(EvalLoader, "__iter__")
    def batches(self: EvalLoader) -> Iterator[Any]:
        for batch in original(self):
            linger(reached, 0.5)
            yield batch


def slow_startup(reached: Callable[[], None]) -> None:
    original = build.build_data

    @replaces(build, "build_data")
    def build_data(config: Any) -> Any:
        linger(reached)
        return original(config)


AT_STEP: dict[str, Callable[[], object]] = {
    "raise": fail,
    "hang": fail_to_return,
    "lock": hold_the_lock,
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
}
DURING: dict[str, Callable[[Callable[[], None]], None]] = {
    "save": slow_save,
    "evaluation": slow_evaluation,
    "startup": slow_startup,
}


def plant(fault: str, beside: Path) -> None:
    kind, rank, step = fault.split(":")
    if rank not in ("*", str(RANK)):
        return
    reached = (beside / f"reached-{kind}").touch
    if kind == "slow":
        in_step(lambda: time.sleep(int(step) / 1000), None)
    elif kind == "flags":
        sys.argv += step.split()
    elif kind == "first":
        in_step(lambda: linger(reached), 0)
    elif kind in DURING:
        DURING[kind](reached)
    else:
        in_step(AT_STEP[kind], int(step))


if __name__ == "__main__":
    faults = sys.argv.pop(1)
    for planted in faults.split(",") if faults != "none" else ():
        plant(planted, Path(sys.argv[sys.argv.index("--output-dir") + 1]).parent)
    leave(train_command(sys.argv[1:], prog="faulty"))
