"""The log of attempts: for each start of a run, its step, world size, ZeRO stage, precision,
excluded images, the settings that may change, its device and its versions.

They determine which process had a sample, in which order gradients were summed, and where the
inputs came from. So `fastdeit replay` can repeat a step exactly, also if the run was later resumed
in another form.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fastdeit.storage.jsonl import read_json_lines, read_records, replace_lines, restore_names
from fastdeit.storage.run_folder import RunFolder


@dataclass(frozen=True)
class Attempt:
    """The time of a run from one start to the next."""

    step: int
    """The number of finished steps when it began."""
    world_size: int
    micro_batch: int
    zero_stage: int
    offload_optimizer: bool
    precision: str
    augment_backend: str
    decoder: str
    left_out: tuple[int, ...] = ()
    """The rows of the training images that were already excluded when it began."""
    teacher_output: str = ""
    """The teacher's output that the loss read: `class`, `logits`, or the largest logits of a cache;
    empty without a teacher, and in older files."""
    alternating_pairs: bool = True
    """Whether each rank took every W-th pair of a step, as in older files; now it takes
    neighbouring pairs."""
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The settings that may change when a run is resumed, by section; empty in older files."""
    recipe: str = ""
    """The recipe that the command named; empty in older files, as all that follows."""
    time: float = 0.0
    """The time when it began, in seconds since 1970."""
    device: str = ""
    """The name of rank 0's GPU, or of its processor."""
    code: str = ""
    """The hash of the package's Python files."""
    versions: dict[str, str] = field(default_factory=dict)
    """The versions of Python and of the packages that can change a result."""


def add_attempt(folder: RunFolder, attempt: Attempt) -> None:
    """Record that a run is started or resumed. Raises OSError.

    The whole file is written, as older versions left a blank line in it.
    """
    replace_lines(folder.attempts, [*read_json_lines(folder.attempts), attempt])


def read_attempts(folder: RunFolder) -> list[Attempt]:
    """Return the attempts of a run, oldest first; none for a folder without a run."""
    attempts = read_records(folder.attempts, Attempt)
    return [replace(attempt, settings=restore_names(attempt.settings)) for attempt in attempts]


def attempt_at(attempts: Sequence[Attempt], step: int) -> Attempt | None:
    """Return the last attempt that trained `step`; None if all began after it."""
    return next((attempt for attempt in reversed(attempts) if attempt.step <= step), None)
