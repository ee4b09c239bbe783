"""The architecture of the weights that a run starts from, as settings of the run."""

import json
from typing import Any

from fastdeit.models.network import WeightFile, find_architecture
from fastdeit.models.sizes import SIZES, infer_student_sizes, is_student

_FIELDS = {
    "patch_size": "patch_size",
    "embed_dim": "embed_dim",
    "depth": "depth",
    "num_heads": "num_heads",
    "qkv_bias": "qkv_bias",
    "init_values": "init_values",
    "reg_tokens": "registers",
}
"""From the keywords of `Student` to the names of the settings."""


def list_settings(source: str, file: WeightFile) -> dict[str, Any]:
    """Return the settings of the model that weights belong to, by field: its name, and the sizes of
    a student that are not those of the name.

    source: as it was named. Raises ValueError if nothing names the architecture.
    """
    name = find_architecture(source, file)
    if name not in SIZES or not is_student(file.state):
        return {"model": name}
    described = {key: json.dumps(value) for key, value in file.arguments.items()}
    sizes = infer_student_sizes(file.state, described | dict(file.metadata) | {"model": name})
    usual = SIZES[name]._asdict() | {"reg_tokens": 0}
    changed = [key for key in _FIELDS if key in sizes and sizes[key] != usual[key]]
    return {"model": name} | {_FIELDS[key]: sizes[key] for key in changed}
