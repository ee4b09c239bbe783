"""A run folder without a run, for the tests of its mirror; a store that fails on request."""

from collections.abc import Iterable
from pathlib import Path

import torch

from fastdeit.checkpoint.store import save_checkpoint
from fastdeit.mirror.store import RunStore
from fastdeit.storage.run_folder import RunFolder


class Interrupted(BaseException):
    """The end of the process, as by kill -9."""


class CountingStore(RunStore):
    """A store that writes down what is written and removed, and ends the process before the
    operation number `last`."""

    def __init__(self, url: str, last: int | None = None) -> None:
        super().__init__(url)
        self.log: list[str] = []
        self.last = last

    def _note(self, line: str) -> None:
        if len(self.log) == self.last:
            raise Interrupted
        self.log.append(line)

    def write(self, name: str, data: bytes) -> None:
        self._note(name)
        super().write(name, data)

    def upload(self, file: Path, name: str) -> None:
        self._note(name)
        super().upload(file, name)

    def copy(self, source: str, name: str) -> None:
        self._note(f"{name} = {source}")
        super().copy(source, name)

    def remove(self, names: Iterable[str]) -> None:
        for name in names:
            self._note(f"-{name}")
            super().remove([name])


def save_step(folder: RunFolder, step: int, keep: int = 2) -> Path:
    """Write what a run has after a step: log, checkpoint, weights as a link."""
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.config.write_text("run: {}\n")
    with folder.metrics.open("a") as log:
        log.write(f'{{"step": {step}}}\n')
    tensors = {name: {"w": torch.full((3,), float(step))} for name in ("model", "exp_avg")}
    state = {"step": step, "adam_step": step, "skipped": 0}
    saved = save_checkpoint(folder.checkpoints, step, tensors, state, keep)
    folder.model.unlink(missing_ok=True)
    folder.model.hardlink_to(saved / "model.safetensors")
    return saved


def start_attempt(folder: RunFolder, number: int) -> None:
    folder.path.mkdir(parents=True, exist_ok=True)
    with folder.attempts.open("a") as file:
        file.write(f'{{"step": 0, "time": {number}}}\n')
