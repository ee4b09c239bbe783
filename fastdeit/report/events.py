"""Events of a run apart from its steps: starts, skipped steps, spikes, rollbacks, failures,
excluded images; on one axis, the optimizer steps done.

Records of older versions lack fields, so a field that is absent has no text. Nothing here imports
torch, as the records' own modules do.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fastdeit.display.text import printable
from fastdeit.reliability.failures import read_failures
from fastdeit.storage.attempts import Attempt
from fastdeit.storage.jsonl import read_json_lines
from fastdeit.storage.run_folder import RunFolder

_MOST_STEPS = 1 << 53
_NAMED = 3
"""The number of images that a text names."""


@dataclass(frozen=True)
class RunEvent:
    """One event of a run."""

    step: int
    """The number of optimizer steps done when it happened."""
    kind: str
    """The kind: start, skipped, spike, rollback, failure or quarantined."""
    text: str
    """The description in one printable line."""
    time: float | None = None
    """The time in seconds since 1970; None if it is not recorded."""


Record = Mapping[str, Any]
"""A record in a file of the run folder."""


def list_events(folder: RunFolder, attempts: Iterable[Attempt]) -> list[RunEvent]:
    """Return the events of a run, by step. Raises OSError."""
    found = [_describe_start(number, attempt) for number, attempt in enumerate(attempts)]
    found += _read(folder, "bad_steps", _describe_skip)
    found += _read(folder, "spikes", _describe_spike)
    found += _read(folder, "rollbacks", _describe_rollback)
    found += [
        RunEvent(
            failure.step,
            "failure",
            printable(f"rank {failure.rank} failed in {failure.section}: {failure.error}"),
            failure.time,
        )
        for failure in read_failures(folder)
    ]
    found += _list_quarantined(read_json_lines(folder.quarantine))
    return sorted(found, key=lambda event: event.step)


def _read(
    folder: RunFolder, name: str, describe: Callable[[Record], RunEvent | None]
) -> list[RunEvent]:
    events = map(describe, read_json_lines(getattr(folder, name)))
    return [event for event in events if event is not None]


def _describe_start(number: int, attempt: Attempt) -> RunEvent:
    verb = "resumed" if number else "started"
    processes = "process" if attempt.world_size == 1 else "processes"
    text = f"{verb} on {attempt.world_size} {processes}, {attempt.precision}"
    return RunEvent(attempt.step, "start", printable(text), attempt.time or None)


def _describe_skip(record: Record) -> RunEvent | None:
    parts = record.get("not_finite")
    ranks = {part.get("rank") for part in parts if isinstance(part, dict)} if parts else set()
    where = f"the loss is not finite on rank {', '.join(sorted(map(str, ranks)))}"
    return _place(record, "skipped", where if ranks else "the gradient is not finite")


def _describe_spike(record: Record) -> RunEvent | None:
    norm, median = read_number(record.get("grad_norm")), read_number(record.get("median"))
    return _place(record, "spike", f"gradient norm {norm:.3g}, median before {median:.3g}")


def _describe_rollback(record: Record) -> RunEvent | None:
    skipped = record.get("passed_over")
    if not isinstance(skipped, list) or len(skipped) != 2 or not all(map(is_step, skipped)):
        return None
    text = f"rolled back to step {skipped[0]}, skipping all steps up to {skipped[1] - 1}"
    return _place({**record, "step": skipped[1]}, "rollback", text)


def _place(record: Record, kind: str, text: str) -> RunEvent | None:
    """Return the event of a record, or None if it names no step."""
    step: Any = record.get("step")
    if not is_step(step):
        return None
    time = read_number(record.get("time"))
    return RunEvent(step, kind, printable(text), time if time > 0 else None)


def is_step(value: Any) -> bool:
    """Return True for a count of steps, which a float64 holds exactly."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MOST_STEPS


def read_number(value: Any) -> float:
    """Return a number of a record; NaN for what is none. Those that JSON lacks have their names."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    try:
        return float(value) if is_number or value in ("inf", "-inf") else math.nan
    except OverflowError:  # an integer of hundreds of digits
        return math.nan


def _list_quarantined(records: Iterable[Record]) -> list[RunEvent]:
    """Return an event for each step at which images were excluded."""
    names: dict[int, dict[tuple[Any, Any], str]] = {}
    for record in records:
        step = record.get("step", 0)
        if is_step(step):
            image = (str(record.get("split")), str(record.get("row")))
            names.setdefault(step, {})[image] = str(record.get("name", "")) or f"row {image[1]}"
    return [
        RunEvent(step, "quarantined", _name_images(list(images.values())))
        for step, images in names.items()
    ]


def _name_images(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    word = "image" if len(names) == 1 else "images"
    return printable(f"{len(names)} {word} excluded: {', '.join(names[:_NAMED])}{more}")
