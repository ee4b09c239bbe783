"""fastdeit/train.py with faults planted, for the launcher: `deepspeed tests/support/faulty.py
KIND:RANK:STEP[,...] FLAGS...`

RANK may be `*`. STEP: how many optimizer steps are done when it happens, in the next one; for
`slow`: milliseconds added to every step; for `flip`: the step after which it happens. `refuse` is
an error on this rank alone while a run is built. The faults from `save` on last some
seconds, and leave a file `reached-KIND` beside the run folder as soon as they begin.
"""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[0] = str(ROOT)

from fastdeit.reliability import launcher

ATTACHED = launcher.attach()  # first, as in train.py

from fastdeit.commands.imports import pause_collection

with pause_collection():
    import torch

    from fastdeit.commands.runs.train import train_command
    from fastdeit.data.loaders.evaluation import EvalLoader
    from fastdeit.distributed.exits import hard_exit
    from fastdeit.run import build
    from fastdeit.training.trainer import Trainer

RANK = int(os.environ["RANK"])


def replace(owner: object, name: str) -> Callable[[Callable[..., Any]], None]:
    """Return a decorator that puts a function in the place of `owner.name`."""
    return lambda function: setattr(owner, name, function)


def fail() -> None:
    raise RuntimeError("planted")


def fail_to_return() -> None:
    time.sleep(600)


def hold_the_lock() -> None:
    """Hold Python's interpreter lock for 600 s, in C, where no signal is handled."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    ctypes.PyDLL("libc.so.6").sleep(600)


def plant_in_step(fault: Callable[[], object], step: int | None) -> None:
    """Call `fault` before each batch of a step; of every step if it is None."""
    original = Trainer.train_step

    @replace(Trainer, "train_step")
    def train_step(self: Trainer, batches: Iterable[Any]) -> Any:
        return original(self, faulty(batches) if step is None or self.step == step else batches)

    def faulty(batches: Iterable[Any]) -> Iterator[Any]:
        for batch in batches:
            fault()
            yield batch


def linger(reached: Callable[[], None], seconds: float = 2.0) -> None:
    """Report that the fault has begun, then wait."""
    reached()
    time.sleep(seconds)


def slow_save(reached: Callable[[], None]) -> None:
    original = os.fsync

    @replace(os, "fsync")
    def fsync(descriptor: int) -> None:
        if "/checkpoints" in os.readlink(f"/proc/self/fd/{descriptor}"):
            linger(reached, 0.2)
        original(descriptor)


def slow_evaluation(reached: Callable[[], None]) -> None:
    original = EvalLoader.__iter__

    @replace(EvalLoader, "__iter__")
    def batches(self: EvalLoader) -> Iterator[Any]:
        for batch in original(self):
            linger(reached, 0.5)
            yield batch


def slow_startup(reached: Callable[[], None]) -> None:
    original = build.build_data

    @replace(build, "build_data")
    def build_data(config: Any) -> Any:
        linger(reached)
        return original(config)


def spoil_images(step: int) -> None:
    """Put a NaN into each micro-batch of an optimizer step."""
    original = Trainer.train_step

    @replace(Trainer, "train_step")
    def train_step(self: Trainer, batches: Iterable[Any]) -> Any:
        return original(self, spoilt(batches) if self.step == step else batches)

    def spoilt(batches: Iterable[Any]) -> Iterator[Any]:
        for batch in batches:
            batch.images[1, 0, 5, 5] = float("nan")
            yield batch


def flip_a_bit(step: int) -> None:
    """Flip the lowest bit of this rank's first weight after `step` optimizer steps."""
    original = Trainer.train_step

    @replace(Trainer, "train_step")
    def train_step(self: Trainer, batches: Iterable[Any]) -> Any:
        statistics = original(self, batches)
        if self.step == step:
            next(self.state.model.parameters()).data.view(-1).view(torch.uint8)[0] ^= 1
        return statistics


def refuse(reached: Callable[[], None]) -> None:
    """Raise on this rank alone, at a place where ranks exchange no errors."""

    @replace(build, "build_plan")
    def build_plan(*_: Any) -> Any:
        reached()
        raise ValueError("planted, on one rank")


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
    "refuse": refuse,
}


def plant(fault: str, beside: Path) -> None:
    """Plant a fault KIND:RANK:STEP if it is this rank's; beside: the folder of the run folder."""
    kind, rank, step = fault.split(":")
    if rank not in ("*", str(RANK)):
        return
    reached = (beside / f"reached-{kind}").touch
    if kind == "slow":
        plant_in_step(lambda: time.sleep(int(step) / 1000), None)
    elif kind == "flags":
        sys.argv += step.split()
    elif kind == "first":
        plant_in_step(lambda: linger(reached), 0)
    elif kind == "nan":
        spoil_images(int(step))
    elif kind == "flip":
        flip_a_bit(int(step))
    elif kind in DURING:
        DURING[kind](reached)
    else:
        plant_in_step(AT_STEP[kind], int(step))


def plant_all(faults: str, argv: Sequence[str]) -> None:
    """Plant KIND:RANK:STEP[,...], or `none`; argv: the run's, which has --output-dir."""
    for planted in faults.split(",") if faults != "none" else ():
        plant(planted, Path(argv[argv.index("--output-dir") + 1]).parent)


if __name__ == "__main__":
    faults = sys.argv.pop(1)
    plant_all(faults, sys.argv)
    hard_exit(train_command(sys.argv[1:], "faulty", ATTACHED))
