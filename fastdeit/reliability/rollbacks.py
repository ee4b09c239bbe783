"""Rollback after too many bad steps in a row: which steps a run skips from then on, and the debug
bundle that a run writes when it stops.

A skipped step does not change the weights. Training the same steps again and skipping only the bad
ones would therefore end in the same place. As PaLM's authors did (arXiv 2204.02311, section 5.1), a
run rolls back to an earlier checkpoint and resumes the data after the last bad step: every step
between is skipped. The skipped range is in `rollbacks.jsonl` before the checkpoint is loaded, so
that every later start does the same.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastdeit.checkpoint.files import Tensors
from fastdeit.checkpoint.select import LoadedCheckpoint, find_checkpoint
from fastdeit.checkpoint.store import save_checkpoint
from fastdeit.distributed.collectives import on_rank0
from fastdeit.storage.atomic import atomic_write_text
from fastdeit.storage.jsonl import read_records, replace_lines
from fastdeit.storage.run_folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class Rollback:
    """A line of rollbacks.jsonl."""

    checkpoint: int = 0
    """The step that the run rolled back to."""
    bad_steps: tuple[int, ...] = ()
    """The steps that were bad in a row."""
    passed_over: tuple[int, int]
    """The steps that are skipped from then on: from, to (exclusive)."""
    time: float = 0.0
    """The time of the rollback, in seconds since 1970."""


class Rollbacks:
    """The rollbacks of a run, stored in its folder. Creating it is a collective, and raises what
    `read_rollbacks` raises."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self.entries: list[Rollback] = on_rank0(lambda: read_rollbacks(folder))

    def __contains__(self, step: object) -> bool:
        """Return True if a step is skipped."""
        return any(step in range(*entry.passed_over) for entry in self.entries)

    def find(self, first_bad: int, allowed: int, layout: Tensors) -> LoadedCheckpoint:
        """Return the newest whole checkpoint from before a bad step, and before the skipped steps
        that lead up to it. A collective.

        Raises ValueError, the same on every rank, if there is none, or if the run has rolled back
        `allowed` times.
        """
        if len(self.entries) >= allowed:
            raise ValueError(
                f"the run rolled back {len(self.entries)} times, --max-rollbacks allows {allowed}"
            )
        while first_bad - 1 in self:
            first_bad -= 1
        found = find_checkpoint(self._folder, "", layout, before=first_bad)
        if found is None:
            raise ValueError(f"there is no checkpoint from before step {first_bad}")
        return found

    def add(self, checkpoint: int, bad_steps: Sequence[int]) -> None:
        """Record a rollback from the last of `bad_steps` to a checkpoint's step. A collective.

        Raises ValueError if the disk refuses.
        """
        entry = Rollback(
            checkpoint=checkpoint,
            bad_steps=tuple(bad_steps),
            passed_over=(checkpoint, bad_steps[-1] + 1),
            time=time.time(),
        )
        entries = [*self.entries, entry]
        on_rank0(lambda: replace_lines(self._folder.rollbacks, entries))
        self.entries = entries


def read_rollbacks(folder: RunFolder) -> list[Rollback]:
    """Return the rollbacks of the run in a folder, oldest first.

    Raises ValueError for a damaged file: the run would not be the same without one of its lines.
    """
    return read_records(folder.rollbacks, Rollback, strict=True)


def write_bundle(
    folder: Path, tensors: Tensors, state: Mapping[str, Any], report: Mapping[str, Any]
) -> list[str]:
    """Write a checkpoint of the state that the first bad step began with, and report.json.

    state: its `step` is that step. Returns a line for each file that could not be written.
    """
    faults: list[str] = []
    try:
        save_checkpoint(folder, state["step"], tensors, state, keep=2)
    except (OSError, ValueError) as error:  # a full disk; weights that are not finite
        faults.append(f"no checkpoint: {error}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(dict(report) | {"faults": faults}, indent=1)
        atomic_write_text(folder / "report.json", text)
    except OSError as error:
        faults.append(f"no report: {error}")
    return faults
