"""config.json, which timm and the Hugging Face Hub read beside model.safetensors: written and read.

With it `timm.create_model("local-dir:RUN", pretrained=True)` builds the model and loads the
weights, and `timm.data.resolve_model_data_config` returns the preprocessing of the evaluation.
Source: timm 1.0.31, models/_hub.py.
"""

import json
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import timm
from timm.models import PretrainedCfg
from torch import nn

from fastdeit.models.sizes import has_qkv_bias
from fastdeit.models.sources import HUB_FILES
from fastdeit.models.student import Student
from fastdeit.storage.json_values import parse_json, read_json_file
from fastdeit.storage.jsonl import restore_names, to_strict_json
from fastdeit.storage.run_folder import RunFolder


class EvalView(NamedTuple):
    """The view of a model in evaluation: the centre, size pixels a side, of an image whose short
    side was resized to size / crop_pct; normalised by mean and std. interpolation, crop_mode:
    timm's."""

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_pct: float
    interpolation: str = "bicubic"
    crop_mode: str = "center"


def describe_model(
    name: str, model: nn.Module, view: EvalView, classes: Sequence[str] | None
) -> dict[str, Any]:
    """Return the content of config.json, as JSON values.

    name: timm's, of a student or any other model; classes: in the order of the labels, None if they
    have no names.
    """
    architecture = name_in_timm(name)
    known = timm.get_pretrained_cfg(architecture, allow_unregistered=True) or PretrainedCfg()
    # a model with a position embedding is built for one size
    arguments = {"img_size": view.size} if known.fixed_input_size else {}
    if isinstance(model, Student):
        arguments |= _describe_student(model)
    else:
        arguments |= _recorded_arguments(model)
    num_classes = int(model.num_classes)  # type: ignore[arg-type]
    return {
        "architecture": architecture,
        "num_classes": num_classes,
        "num_features": arguments.get("embed_dim") or model.num_features,
        **({} if classes is None else {"label_names": to_strict_json(classes)}),
        "model_args": arguments,
        "pretrained_cfg": {
            "num_classes": num_classes,
            "input_size": [3, view.size, view.size],
            "fixed_input_size": known.fixed_input_size,
            "interpolation": view.interpolation,
            "crop_pct": view.crop_pct,
            "crop_mode": view.crop_mode,
            "mean": list(view.mean),
            "std": list(view.std),
            "first_conv": known.first_conv,
            "classifier": known.classifier,
        },
    }


def name_in_timm(name: str) -> str:
    """Return timm's name of an architecture, without the tag of published weights; for the small
    students at 384 px, which timm does not have, the name at 224 px."""
    architecture = name.partition(".")[0]
    return architecture if timm.is_model(architecture) else architecture.replace("_384", "_224")


def _recorded_arguments(model: nn.Module) -> dict[str, Any]:
    """Return the arguments of timm's factory for a model of another shape than its name has; timm
    before 1.0.31 records none."""
    recorded = getattr(model, "_model_args", {})
    elsewhere = ("num_classes", "img_size")
    return {
        key: value
        for key, value in recorded.items()
        if key not in elsewhere and not key.endswith("_rate")
    }


def _describe_student(student: Student) -> dict[str, Any]:
    """Return the arguments that timm needs to build a model of the same shape."""
    parts = {
        "init_values": student.init_values,
        "no_embed_class": student.no_embed_class,
        "reg_tokens": student.num_reg_tokens,
    }
    return {
        "patch_size": student.patch_size,
        "embed_dim": student.embed_dim,
        "depth": len(student.blocks),
        "num_heads": student.num_heads,
        "qkv_bias": has_qkv_bias(student.state_dict()),
        **{name: value for name, value in parts.items() if value},
    }


def describe_weights(
    name: str, model: nn.Module, view: EvalView, classes: Sequence[str] | None
) -> dict[str, str]:
    """Return the metadata of a file of weights, as JSON values: enough to build the model and its
    preprocessing again. Arguments as `describe_model`, but view.size is that of training."""
    facts: dict[str, Any] = {
        "input_size": view.size,
        "mean": view.mean,
        "std": view.std,
        "crop_pct": view.crop_pct,
    }
    usual = EvalView._field_defaults
    facts |= {name: getattr(view, name) for name in usual if getattr(view, name) != usual[name]}
    if classes is not None:
        facts |= {"num_classes": len(classes), "classes": classes}
    if isinstance(model, Student):
        facts["num_heads"] = model.num_heads
        if model.no_embed_class:
            facts["no_embed_class"] = True
    # some loaders refuse a file without a format
    return {"format": "pt", "model": name} | {
        field: json.dumps(value) for field, value in facts.items()
    }


def find_config(path: Path) -> Path | None:
    """Return the config.json that describes a file of weights, None if there is none: beside the
    files of a run or of the Hub, and in the run of a checkpoint."""
    beside = RunFolder(path.parent)
    above = RunFolder(path.parents[2]) if len(path.parents) > 2 else beside
    of_run = {beside.model, beside.model_ema, beside.model_best, beside.model_ema_best}
    if path.parent.parent == above.checkpoints:
        place = above.model_config
    elif path in of_run or path.name in HUB_FILES:
        place = beside.model_config
    else:
        return None
    return place if place.is_file() else None


def read_class_names(path: Path, metadata: Mapping[str, str]) -> tuple[str, ...] | None:
    """Return the names of the classes that the weights in a file were trained for, in the order of
    their outputs; None if neither its metadata nor its config.json has them.

    Raises ValueError for anything but a list of names, and OSError.
    """
    place = find_config(path)
    if "classes" in metadata:
        where = f"{path}: classes"
        return _check_names(parse_json(metadata["classes"], where), where)
    return find_class_names(read_json_file(place), str(place)) if place else None


def find_class_names(content: Any, where: str) -> tuple[str, ...] | None:
    """Return the names of the classes in a config.json; None if it has none.

    where: its place, for the error. Raises ValueError for anything but a list of names.
    """
    return _check_names(_find_label_names(content), f"{where}: label_names")


def _check_names(names: Any, where: str) -> tuple[str, ...] | None:
    if names is None:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{where} must be a list of names (got {reprlib.repr(names)})")
    return tuple(map(restore_names, names))


def _find_label_names(content: Any) -> Any:
    """Return the names in timm's config.json: a list, or an object by number; older ones have all
    fields at the top."""
    content = content if isinstance(content, dict) else {}
    inner = content.get("pretrained_cfg")
    places = [content, inner if isinstance(inner, dict) else {}]
    found = [place[key] for place in places for key in ("label_names", "labels") if key in place]
    names = found[0] if found else None
    if isinstance(names, dict):
        return [names.get(str(number)) for number in range(len(names))]
    return names
