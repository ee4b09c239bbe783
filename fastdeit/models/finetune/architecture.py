"""The architecture that a run takes from the weights that it starts from, and notes on their mean
and std."""

from collections.abc import Sequence
from typing import Any

from fastdeit.models.network import WeightFile, find_architecture, find_sizes
from fastdeit.models.sizes import SIZES, is_student
from fastdeit.storage.json_values import parse_json

_FIELDS = {
    "patch_size": "patch_size",
    "embed_dim": "embed_dim",
    "depth": "depth",
    "num_heads": "num_heads",
    "qkv_bias": "qkv_bias",
    "init_values": "init_values",
    "reg_tokens": "registers",
}
"""The names of the settings by the keywords of `Student`."""


def list_settings(source: str, file: WeightFile) -> dict[str, Any]:
    """Return the settings of the model that weights belong to, by field: its name, and the sizes of
    a student that are not those of the name.

    source: as it was named. Raises ValueError if nothing names the architecture.
    """
    name = find_architecture(source, file)
    if name not in SIZES or not is_student(file.state):
        return {"model": name}
    sizes = find_sizes(name, file)
    usual = SIZES[name]._asdict() | {"reg_tokens": 0}
    changed = [key for key in _FIELDS if key in sizes and sizes[key] != usual[key]]
    return {"model": name} | {_FIELDS[key]: sizes[key] for key in changed}


def note_normalisation(file: WeightFile, mean: Sequence[float], std: Sequence[float]) -> list[str]:
    """Return a note if the weights were trained with another mean or std, as far as the file or its
    config.json names them. Raises ValueError for metadata that is no JSON."""
    flags = []
    for field, own in (("mean", mean), ("std", std)):
        theirs = _find_colour(file, field) or list(own)
        if theirs != list(own):
            flags.append(f"--{field} {' '.join(f'{value:g}' for value in theirs)}")
    return [f"the weights were trained with {' '.join(flags)}"] if flags else []


def _find_colour(file: WeightFile, field: str) -> list[float] | None:
    """Return the three numbers that the file or its config.json names; else None."""
    described = file.config.get("pretrained_cfg")
    found: Any = described.get(field) if isinstance(described, dict) else None
    if found is None and field in file.metadata:
        found = parse_json(file.metadata[field], f"{file.path}: {field}")
    is_colour = isinstance(found, list) and len(found) == 3
    return found if is_colour and all(isinstance(x, int | float) for x in found) else None
