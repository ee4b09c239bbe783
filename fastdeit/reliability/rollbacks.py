"""Going back after too many bad steps in a row: which steps a run passes over from then on, and
what a stop leaves to look at.

A skipped step leaves the weights as they were, so training them again up to the same place and
leaving out the bad steps alone would come to the same end. As PaLM's authors did (arXiv 2204.02311,
section 5.1), a run goes back to a checkpoint from before, and takes up the data after the last bad
step: every step between is passed over. They stand in `rollbacks.jsonl` before the checkpoint is
loaded, so that every later start does the same.
"""

import json
import operator
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastdeit.checkpoint.files import Tensors
from fastdeit.checkpoint.select import LoadedCheckpoint, find_checkpoint
from fastdeit.checkpoint.store import save_checkpoint
from fastdeit.distributed.collectives import on_rank0
from fastdeit.storage.atomic import atomic_write_text
from fastdeit.storage.run_folder import RunFolder


class Rollbacks:
    """The times that a run went back, in its folder. A collective. Raises ValueError as
    `read_rollbacks` does."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder, self._file = folder, folder.rollbacks
        self.entries: list[dict[str, Any]] = on_rank0(lambda: read_rollbacks(folder))

    def __contains__(self, step: object) -> bool:
        """Whether a step is passed over."""
        return any(step in range(*entry["passed_over"]) for entry in self.entries)

    def find(self, first_bad: int, allowed: int, layout: Tensors) -> LoadedCheckpoint:
        """The newest whole checkpoint from before a bad step, and from before the passed-over steps
        that lead up to it.

        Raises ValueError, the same on every rank, if there is none, or if the run went back
        `allowed` times. A collective.
        """
        if len(self.entries) >= allowed:
            raise ValueError(
                f"the run went back {len(self.entries)} times, --max-rollbacks allows {allowed}"
            )
        while first_bad - 1 in self:
            first_bad -= 1
        found = find_checkpoint(self._folder, "", layout, before=first_bad)
        if found is None:
            raise ValueError(f"there is no checkpoint from before step {first_bad}")
        return found

    def add(self, checkpoint: int, bad_steps: Sequence[int]) -> None:
        """Goes back from the last of `bad_steps` to the step of a checkpoint. Raises ValueError if
        the disk refuses.

        A collective.
        """
        passed_over = [checkpoint, bad_steps[-1] + 1]
        entry = {
            "checkpoint": checkpoint,
            "bad_steps": list(bad_steps),
            "passed_over": passed_over,
            "time": time.time(),
        }
        entries = [*self.entries, entry]
        on_rank0(
            lambda: atomic_write_text(
                self._file, "".join(json.dumps(each) + "\n" for each in entries)
            )
        )
        self.entries = entries


def read_rollbacks(folder: RunFolder) -> list[dict[str, Any]]:
    """The times that the run in a folder went back, oldest first.

    In each `passed_over` is the range of steps [from, to). Raises ValueError for a file that is
    damaged, without which the run would not be the same.
    """
    file, entries = folder.rollbacks, []
    for line in file.read_text().splitlines() if file.is_file() else ():
        try:
            entry = json.loads(line)
            first, last = (operator.index(step) for step in entry["passed_over"])
        except (ValueError, KeyError, TypeError):
            raise ValueError(
                f"{file}: damaged: got {line[:80]!r}, allowed are lines with passed_over [from, to)"
            ) from None
        entries.append(entry | {"passed_over": [first, last]})
    return entries


def write_bundle(
    folder: Path, tensors: Tensors, state: Mapping[str, Any], report: Mapping[str, Any]
) -> list[str]:
    """Fills `folder` with a checkpoint of the state that the first bad step began with, and
    report.json.

    state: its `step` is that step. Returns what could not be written, and why.
    """
    faults: list[str] = []
    try:
        save_checkpoint(folder, state["step"], tensors, state, keep=2)
    except (OSError, ValueError) as error:  # a full disk; weights that are not finite
        faults.append(f"no checkpoint: {error}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write_text(
            folder / "report.json", json.dumps(dict(report) | {"faults": faults}, indent=1)
        )
    except OSError as error:
        faults.append(f"no report: {error}")
    return faults
