"""Saving of checkpoints while training continues: rank 0 hands them to a thread, one at a time, and
all ranks agree on whether to continue.

A disk that refuses does not end training by itself. A save that fails is tried again after a pause
and after older checkpoints were removed. Only three failed saves in a row, or a run's last one, end
the run, on every rank at the same step. Weights that are not finite are not saved, and count as a
failure.
"""

import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from fastdeit.checkpoint.files import Tensors
from fastdeit.checkpoint.store import MIN_KEPT, prune_checkpoints, save_checkpoint
from fastdeit.checkpoint.weight_files import WeightFiles
from fastdeit.distributed.collectives import all_agree
from fastdeit.distributed.errors import RunError
from fastdeit.storage.free_space import find_free_bytes

FAILURES_ALLOWED = 2
"""The number of saves in a row that may fail."""
RETRY_S = 1.0
"""Seconds from a failed save to the second attempt."""


class CheckpointError(RunError):
    """Error if checkpoints cannot be saved; raised on every rank."""

    heard_by_all = True


class SaveResult(NamedTuple):
    """Outcome of a save: the checkpoint, None if it failed; warnings: lines for the user."""

    saved: Path | None
    warnings: list[str]


class CheckpointWriter:
    """Writer of the checkpoints of a run, of which the newest `keep` and the best remain; after
    each checkpoint it writes the files of `weights`.

    rank: this process's; only rank 0 writes, the others take part in agreeing. Attributes: scores,
    the validation top-1 by step, which decides the best; every checkpoint's state has those that
    were known by then.
    """

    def __init__(self, weights: WeightFiles, keep: int, rank: int) -> None:
        self.scores: dict[int, float] = {}
        self._weights = weights
        self._folder = weights.folder.checkpoints
        self._keep = keep
        self._rank = rank
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="fastdeit-checkpoint")
        self._save_in_progress: Future[SaveResult] | None = None
        self._failures = 0
        self._warnings: list[str] = []
        self._saved: list[Path] = []

    def save(self, tensors: Tensors, state: Mapping[str, Any]) -> None:
        """Start to save the tensors and JSON values, once the save before has ended. A collective.

        From now on the tensors must not change. Raises CheckpointError if too many saves in a row
        have failed.
        """
        if self._rank == 0:
            self.finish()
            scored = dict(state) | self._describe_scores()
            self._save_in_progress = self._pool.submit(
                self._write, tensors, scored, dict(self.scores)
            )
            if self._failures >= FAILURES_ALLOWED:
                self.finish()
        self._raise_unless(self._failures <= FAILURES_ALLOWED)

    def wait(self) -> None:
        """Wait for the save in progress. Raises CheckpointError if the last one failed. A
        collective."""
        self.finish()
        self._raise_unless(self._failures == 0)

    def _raise_unless(self, good: bool) -> None:
        if not all_agree(good):
            raise CheckpointError(
                "\n  ".join(self._warnings) or f"rank 0 cannot save checkpoints in {self._folder}"
            )

    def take_warnings(self) -> list[str]:
        """Return lines on the saves that ended since the last call; wait for none."""
        if self._save_in_progress is not None and self._save_in_progress.done():
            self.finish()
        warnings = self._warnings
        self._warnings = []
        return warnings

    def take_saved(self) -> list[Path]:
        """Return the checkpoints whose saves `take_warnings` has found to be done."""
        saved = self._saved
        self._saved = []
        return saved

    def close(self) -> None:
        """Wait for the save in progress, and end the thread."""
        self.finish()
        self._pool.shutdown()

    def restore_scores(self, state: Mapping[str, Any]) -> None:
        """Restore the scores from a checkpoint's state."""
        self.scores = {int(step): float(score) for step, score in state.get("scores", {}).items()}

    def update_weights(self) -> list[str]:
        """Make the weights files those of the checkpoints that exist; only rank 0 calls this.

        Returns lines for the user. Raises OSError.
        """
        try:
            return self._weights.update(self.scores)
        except ValueError as error:
            return [f"the weights beside the checkpoints are older: {error}"]

    def _describe_scores(self) -> dict[str, Any]:
        """Return the entries of a state for the scores, and for the best one with its step."""
        best = max(self.scores, key=lambda step: (self.scores[step], step), default=None)
        return {
            "scores": dict(self.scores),
            "best": None if best is None else {"step": best, "top1": self.scores[best]},
        }

    def finish(self) -> None:
        """Wait for the save in progress; a failure of it is only counted."""
        if self._save_in_progress is None:
            return
        future = self._save_in_progress
        self._save_in_progress = None
        result = future.result()
        self._failures = 0 if result.saved else self._failures + 1
        self._warnings += result.warnings
        self._saved += [result.saved] if result.saved else []

    def _write(
        self, tensors: Tensors, state: Mapping[str, Any], scores: Mapping[int, float]
    ) -> SaveResult:
        """Save a checkpoint, in the thread; try a second time if the disk refuses."""
        step = state["step"]
        warnings = self._check_space(tensors)
        for hint in ("; trying again", ""):
            try:
                metadata = self._weights.metadata_of(step)
                saved = save_checkpoint(
                    self._folder, step, tensors, state, self._keep, scores, metadata
                )
                return SaveResult(saved, warnings + self._weights.update(scores))
            except ValueError as error:
                warnings.append(f"checkpoint of step {step} not saved: {error}")
                return SaveResult(None, warnings)
            except OSError as error:
                warnings.append(f"checkpoint of step {step} not saved: {error}{hint}")
            if hint:
                prune_checkpoints(self._folder, MIN_KEPT, scores)
                time.sleep(RETRY_S)
        return SaveResult(None, warnings)

    def _check_space(self, tensors: Tensors) -> list[str]:
        """Return a warning if the disk has no room for two checkpoints."""
        size = sum(tensor.nbytes for named in tensors.values() for tensor in named.values())
        try:
            free = find_free_bytes(self._folder)
        except OSError:
            return []  # the save will show it
        if free >= 2 * size:
            return []
        sizes = f"{free / 2**20:,.0f} MiB free, a checkpoint takes {size / 2**20:,.0f} MiB"
        return [f"little room in {self._folder}: {sizes}"]
