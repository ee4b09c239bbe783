"""Every start of a run, in its folder: how many processes went on from which step, in what form,
without which images.

None of it decides a run's samples or its maths; all of it decides on which process a sample was,
and what was summed first. So a step can be taken again as it was, though the run has gone on in
another form since.
"""

import contextlib
import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass

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
    with folder.attempts.open("a") as file:
        file.write(
            f"\n{json.dumps(dataclasses.asdict(attempt))}\n"
        )  # the last line may have been cut off by a crash


def read_attempts(folder: RunFolder) -> list[Attempt]:
    """In the order of their beginnings; empty for a folder without any."""
    path = folder.attempts
    lines = []
    for text in path.read_text().splitlines() if path.is_file() else ():
        with contextlib.suppress(ValueError):
            lines.append(json.loads(text))
    return [Attempt(**line | {"left_out": tuple(line["left_out"])}) for line in lines]


def attempt_at(attempts: Sequence[Attempt], step: int) -> Attempt | None:
    """The one that step `step` was taken in, for the last time if it was taken again; None: the run
    began later."""
    return next((attempt for attempt in reversed(attempts) if attempt.step <= step), None)
