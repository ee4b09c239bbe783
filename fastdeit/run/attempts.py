"""Every start of a run, in its folder: how many processes went on from which step, in what form,
without which images.

None of it decides a run's samples or its maths; all of it decides on which process a sample was,
and what was summed first. So a step can be taken again as it was, though the run has gone on in
another form since.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from fastdeit.storage.jsonl import append_lines, read_records
from fastdeit.storage.run_folder import RunFolder


@dataclass(frozen=True)
class Attempt:
    """A run from one start to the next."""

    step: int
    """Optimizer steps done when it began."""
    world_size: int
    micro_batch: int
    zero_stage: int
    offload_optimizer: bool
    precision: str
    augment_backend: str
    decoder: str
    left_out: tuple[int, ...] = ()
    """Rows of the training images that had been found bad by then."""


def add_attempt(folder: RunFolder, attempt: Attempt) -> None:
    """Writes down that a run begins or goes on. Raises OSError."""
    append_lines(folder.attempts, [attempt])


def read_attempts(folder: RunFolder) -> list[Attempt]:
    """In the order of their beginnings; empty for a folder without any."""
    return read_records(folder.attempts, Attempt)


def attempt_at(attempts: Sequence[Attempt], step: int) -> Attempt | None:
    """The one that step `step` was taken in, for the last time if it was taken again; None: the run
    began later."""
    return next((attempt for attempt in reversed(attempts) if attempt.step <= step), None)
