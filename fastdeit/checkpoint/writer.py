"""Saves a run's checkpoints while it trains on: rank 0 hands them to a thread, one at a time, and
all ranks agree on the end.

A disk that refuses never ends training by itself. A save that fails is tried again after a pause,
with room made for it; only the third in a row that fails, or a run's last, ends the run, on every
rank at the same place. Weights that are not finite are not saved, and count as a failure.
"""

import shutil
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from fastdeit.checkpoint.files import Tensors
from fastdeit.checkpoint.store import FEWEST, prune_checkpoints, save_checkpoint
from fastdeit.distributed.collectives import all_agree
from fastdeit.distributed.errors import RunError

FAILURES_ALLOWED = 2
"""Saves in a row that may fail."""
RETRY_S = 1.0


class CheckpointError(RunError):
    """Checkpoints cannot be saved; raised on every rank."""

    heard_by_all = True


class Outcome(NamedTuple):
    """How a save ended; lines: what a person should know of it."""

    saved: bool
    lines: list[str]


class CheckpointWriter:
    """Writes below `folder`, keeping the newest `keep` checkpoints and the best.

    rank: this process's; only rank 0 writes, the others take part in agreeing. Attributes: scores,
    the validation top-1 by step, which decides the best; every checkpoint's state holds those that
    were known by then.
    """

    def __init__(self, folder: Path, keep: int, rank: int) -> None:
        self.scores: dict[int, float] = {}
        self._folder, self._keep, self._rank = folder, keep, rank
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="fastdeit-checkpoint")
        self._writing: Future[Outcome] | None = None
        self._failures = 0
        self._lines: list[str] = []

    def save(self, tensors: Tensors, state: Mapping[str, Any]) -> None:
        """Begins to save what `Trainer.state` gave, and the JSON values of `state`, once the save
        before has ended.

        The tensors must not change any more. Raises CheckpointError if this is one failure too
        many. A collective.
        """
        if self._rank == 0:
            self.settle()
            self._writing = self._pool.submit(
                self._write, tensors, dict(state) | self._known(), dict(self.scores)
            )
            if self._failures >= FAILURES_ALLOWED:
                self.settle()
        self._agree(self._failures <= FAILURES_ALLOWED)

    def wait(self) -> None:
        """Ends the save that is under way. Raises CheckpointError if the last one failed. A
        collective."""
        self.settle()
        self._agree(self._failures == 0)

    def _agree(self, good: bool) -> None:
        if not all_agree(good):
            raise CheckpointError(
                "\n  ".join(self._lines) or f"rank 0 cannot save checkpoints in {self._folder}"
            )

    def lines(self) -> list[str]:
        """What a person should know of saves that ended since the last call; waits for none."""
        if self._writing is not None and self._writing.done():
            self.settle()
        lines, self._lines = self._lines, []
        return lines

    def close(self) -> None:
        """Waits for the save that is under way."""
        self.settle()
        self._pool.shutdown()

    def take_scores(self, state: Mapping[str, Any]) -> None:
        """Takes up the scores in a checkpoint's state."""
        self.scores = {int(step): float(score) for step, score in state.get("scores", {}).items()}

    def _known(self) -> dict[str, Any]:
        """The part of a state that tells the scores, and the best one with its step."""
        best = max(self.scores, key=lambda step: (self.scores[step], step), default=None)
        return {
            "scores": dict(self.scores),
            "best": None if best is None else {"step": best, "top1": self.scores[best]},
        }

    def settle(self) -> None:
        """Waits for the save that is under way, whatever comes of it."""
        if self._writing is None:
            return
        writing, self._writing = self._writing, None
        outcome = writing.result()
        self._failures = 0 if outcome.saved else self._failures + 1
        self._lines += outcome.lines

    def _write(
        self, tensors: Tensors, state: Mapping[str, Any], scores: Mapping[int, float]
    ) -> Outcome:
        """In the thread: two attempts."""
        lines, what = self._check_space(tensors), f"checkpoint of step {state['step']} not saved"
        for more in ("; trying once more", ""):
            try:
                save_checkpoint(self._folder, state["step"], tensors, state, self._keep, scores)
                return Outcome(True, lines)
            except ValueError as error:
                return Outcome(False, [*lines, f"{what}: {error}"])
            except OSError as error:
                lines.append(f"{what}: {error}{more}")
            if more:
                prune_checkpoints(self._folder, FEWEST, scores)
                time.sleep(RETRY_S)
        return Outcome(False, lines)

    def _check_space(self, tensors: Tensors) -> list[str]:
        size = sum(tensor.nbytes for named in tensors.values() for tensor in named.values())
        place = next(
            place for place in (self._folder, *self._folder.absolute().parents) if place.is_dir()
        )
        try:
            free = shutil.disk_usage(place).free
        except OSError:
            return []  # the save will tell
        if free >= 2 * size:
            return []
        return [
            f"little room in {self._folder}: {free / 2**20:,.0f} MiB free, a checkpoint takes {size / 2**20:,.0f} MiB"
        ]
