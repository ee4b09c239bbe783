"""Names of the log's numbers where trackers show them: in groups."""

from collections.abc import Mapping
from typing import Any

_GROUPS = {
    "train": "loss base distill grad_norm grad_norm_max clipped lr skipped quarantined unrecorded",
    "speed": "images_per_s data_wait tflops mfu memory_gb seconds_left seconds_elapsed",
    "progress": "epoch images_seen",
}
_GROUP_OF = {name: group for group, names in _GROUPS.items() for name in names.split()}
_NO_CURVE = {"step", "time"}


def group_line(line: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a training line by their names in groups: train/loss,
    speed/images_per_s, progress/epoch; a name that no group lists is in `train`."""
    numbers = _pick_numbers(line)
    return {f"{_GROUP_OF.get(name, 'train')}/{name}": numbers[name] for name in numbers}


def group_scores(line: Mapping[str, Any]) -> dict[str, float]:
    """Return the scores of an evaluation's line by their names in groups:
    validation/model/both/top1."""
    scores = {name: value for name, value in _pick_numbers(line).items() if "/" in name}
    return {f"validation/{name}": score for name, score in scores.items()}


def _pick_numbers(line: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: value
        for name, value in line.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and name not in _NO_CURVE
    }
