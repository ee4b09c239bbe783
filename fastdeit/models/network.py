"""Networks built as their weight files describe them: the student for the weights of a DeiT, else
timm's model."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import PretrainedCfg
from torch import nn

from fastdeit.models.hub import find_config, name_in_timm
from fastdeit.models.sizes import SIZES, StateDict, infer_student_sizes, is_student, suggest_names
from fastdeit.models.sources import locate_weights
from fastdeit.models.student import build_student
from fastdeit.models.weights import check_match, fit_student_weights, read_weights
from fastdeit.storage.json_values import read_json_file

_RESERVED = {
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "checkpoint_path",
    "cache_dir",
    "num_classes",
}
"""Arguments of `timm.create_model` that no file decides."""


_COUNTS = re.compile("depth|layer|block")
"""A word in the names of arguments that count layers, each of which has a tensor of its own."""
_SLACK = 4
"""The largest size of a model that a config.json describes, in multiples of the weights in its
file."""
_CLASSIFIERS = ("head", "fc", "classifier", "head.fc")
"""Names of a classifier in files of other forms than timm's."""


@dataclass(frozen=True)
class WeightFile:
    """The content of a file of weights, and of the config.json that describes it, {} if none does.

    metadata: of a safetensors file.
    """

    path: Path
    state: StateDict
    metadata: Mapping[str, str]
    config: Mapping[str, Any]

    @property
    def architecture(self) -> str:
        """Return the name of the architecture in the file or its config.json; "" if there is
        none."""
        return self.metadata.get("model") or str(self.config.get("architecture") or "")

    @property
    def arguments(self) -> dict[str, Any]:
        """Return the arguments of the architecture in its config.json, by timm's names."""
        arguments = self.config.get("model_args")
        found = arguments if isinstance(arguments, dict) else {}
        return {name: value for name, value in found.items() if name not in _RESERVED}


def read_weight_file(source: str | Path, *, ema: bool = False) -> WeightFile:
    """Read what a source names (`locate_weights`), without a network, and what describes it.

    ema: the EMA beside the weights, in the same folder or file. Raises ValueError as `read_weights`
    does, or if config.json is no object; and OSError.
    """
    path = locate_weights(source, ema=ema)
    state, metadata = read_weights(path, ema=ema)
    place = find_config(path)
    config = read_json_file(place) if place else {}
    if not isinstance(config, dict):
        raise ValueError(f"{place}: must be a JSON object")
    return WeightFile(path, state, metadata, config)


def find_architecture(source: str | Path, file: WeightFile) -> str:
    """Return the name of the architecture of weights: of their file, of the timm model that names
    them, or of the published DeiT with their sizes. Raises ValueError if there is none.

    source: as the file was named.
    """
    is_timms = timm.is_model_pretrained(str(source)) and not Path(source).exists()
    name = file.architecture or (str(source) if is_timms else "") or infer_architecture(file)
    if not name:
        raise ValueError(f"{file.path}: does not name its architecture: name it (--model)")
    return name


def infer_architecture(file: WeightFile) -> str:
    """Return the name of the published DeiT with the sizes of a state dict; "" if there is none."""
    if not is_student(file.state):
        return ""
    sizes = infer_student_sizes(file.state, {})
    names = ("embed_dim", "depth", "distilled", "patch_size", "no_embed_class")
    near = [
        name
        for name, size in SIZES.items()
        if all(getattr(size, field) == sizes[field] for field in names)
    ]
    exact = [name for name in near if SIZES[name].image_size == sizes["image_size"]]
    return next(iter([*exact, *near]), "")


def find_sizes(name: str, file: WeightFile) -> dict[str, object]:
    """Return the keywords of `Student` for the weights of a DeiT with this name, as
    `infer_student_sizes`."""
    described = {key: json.dumps(value) for key, value in file.arguments.items()}
    return infer_student_sizes(file.state, described | dict(file.metadata) | {"model": name})


def known_config(name: str) -> PretrainedCfg:
    """Return timm's settings for a model, NAME or NAME.TAG. Raises ValueError for another name."""
    known = name if timm.is_model(name) else name_in_timm(name)
    if not timm.is_model(known):
        raise ValueError(f"the model must be one of timm's (got {name!r}){suggest_names(name)}")
    try:
        return timm.get_pretrained_cfg(known, allow_unregistered=True) or PretrainedCfg()
    except RuntimeError as error:
        raise ValueError(f"the model must have a tag of timm's (got {name!r}): {error}") from error


def count_classes(name: str, file: WeightFile) -> int:
    """Return the number of outputs of the model with these weights."""
    known = known_config(name)
    classifier = known.classifier or ""
    first = classifier if isinstance(classifier, str) else classifier[0]
    names = [f"{module}.weight" for module in (first, *_CLASSIFIERS)]
    weight = next((file.state[name] for name in names if name in file.state), None)
    if weight is None:
        named = file.config.get("num_classes")
        return named if type(named) is int else known.num_classes
    # timm drops the classes before those of the data set, such as "background"
    offset = known.label_offset or 0
    return known.num_classes if len(weight) == known.num_classes + offset else len(weight)


def build_network(name: str, file: WeightFile, *, size: int) -> nn.Module:
    """Build a model with the weights of a file, on the CPU.

    name: timm's. size: side in pixels of the images, for a model of timm that is built for one
    size; a student takes several, and has that of its position embedding. Raises ValueError if the
    weights do not fit the name.
    """
    if name in SIZES and is_student(file.state):
        return _build_student(name, file)
    return _build_timm(name, file, size)


def _build_student(name: str, file: WeightFile) -> nn.Module:
    sizes = find_sizes(name, file)
    student = build_student(name, **sizes)  # type: ignore[arg-type]
    fit_student_weights(student, file.state)
    return student


def _build_timm(name: str, file: WeightFile, size: int) -> nn.Module:
    """Build timm's model: as it is if the names and shapes are its own, else through timm's filter
    for older and other forms of its weights."""
    arguments = file.arguments | {"num_classes": count_classes(name, file)}
    if known_config(name).fixed_input_size:
        # a network with a position embedding is built for one size, the others take any
        arguments["img_size"] = size
    if file.config:
        _check_size(name, file, arguments)
    network = _create(name, file, arguments)
    own = network.state_dict()
    if own.keys() == file.state.keys() and all(
        own[key].shape == value.shape for key, value in file.state.items()
    ):
        network.load_state_dict(file.state)
        return network
    overlay = {"state_dict": file.state, "num_classes": arguments["num_classes"]}
    try:
        filtered = timm.create_model(
            name, pretrained=True, pretrained_cfg_overlay=overlay, **arguments
        )
    except Exception:
        # the filters of timm's models may raise anything for weights of another model
        check_match(own, file.state, name)
        raise
    filtered.pretrained_cfg = filtered.default_cfg = network.pretrained_cfg
    return filtered


def _check_size(name: str, file: WeightFile, arguments: Mapping[str, Any]) -> None:
    """Raise ValueError if the model that a config.json describes is much larger than the weights
    that it is for, before it takes memory."""
    counts = [value for key, value in file.arguments.items() if _COUNTS.search(key)]
    stored = sum(tensor.numel() for tensor in file.state.values())
    is_small = _sum_numbers(counts) <= len(file.state)
    if is_small:
        with torch.device("meta"):
            parts = _create(name, file, arguments).parameters()
        is_small = sum(part.numel() for part in parts) <= _SLACK * stored
    if not is_small:
        problem = f"config.json describes a model that is far larger than its {stored:,} weights"
        raise ValueError(f"{file.path}: {problem}")


def _sum_numbers(value: Any) -> int:
    if isinstance(value, list):
        return sum(map(_sum_numbers, value))
    return value if type(value) is int else 0


def _create(name: str, file: WeightFile, arguments: Mapping[str, Any]) -> nn.Module:
    try:
        return timm.create_model(name, pretrained=False, **arguments)
    except Exception as error:
        # arguments from a file may cause any error in a constructor
        reason = " ".join(str(error).split())
        raise ValueError(f"{file.path}: {name} cannot be built as described: {reason}") from error
