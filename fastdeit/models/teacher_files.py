"""Teachers in files: weights of a timm model or of our student, recorded programs, callables.

Weights are read without running code (weights.py). The others are programs: loading a TorchScript
file can write files, loading an exported one can run any command (torch 2.11 has sympy evaluate
strings in it). So each is loaded only if its kind is named; use only ones you trust.
"""

import importlib
import inspect
import json
import reprlib
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from torch import nn
from torch.export.passes import move_to_device_pass

from fastdeit.models.names import suggest_names
from fastdeit.models.student import SIZES, build_student
from fastdeit.models.teacher_identity import ARCHIVES, hash_state, is_callable
from fastdeit.models.weights import (
    StateDict,
    check_match,
    fit_student_weights,
    infer_student_sizes,
    read_weights,
)
from fastdeit.storage.tensor_files import hash_tensors

MAX_SIZE = 2048
"""The largest image side in pixels that a teacher's file may have."""

Logits = Callable[[torch.Tensor], torch.Tensor]


class Preprocessing(NamedTuple):
    """Input of a network: images normalised by mean and std, size pixels a side."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: int


@dataclass(frozen=True)
class LoadedTeacher:
    """A teacher as its file has it; num_classes None: only a forward pass can show it.

    weights: a hash of them, as in `identify_file`; None for a function, as it may load them when it
    is first called. program: the file of its code; None for weights.
    """

    model: Logits
    name: str
    preprocessing: Preprocessing
    source: Path
    weights: str | None = None
    program: Path | None = None
    num_classes: int | None = None
    classes: tuple[str, ...] | None = None


def load_file(
    name: str, path: Path | None, num_classes: int, device: torch.device, student: Preprocessing
) -> LoadedTeacher:
    """Load a teacher by name, kind or "module:callable"; arguments and errors as `load_teacher`."""
    if is_callable(name):
        return _load_callable(name, path, student)
    if path is None:
        raise ValueError(f"the teacher {name!r} needs a local checkpoint")
    kind = archive_kind(path)
    if name in ARCHIVES and kind == name:
        return _load_archive(kind, path, device, student)
    if name in ARCHIVES:
        fault = f"{path} is not a {name} file" if path.exists() else f"no checkpoint at {path}"
        raise ValueError(fault)
    if kind is not None:
        advice = f"if you trust it, use --teacher-model {kind}"
        raise ValueError(f"{path} is a program ({kind}), not weights: {advice}")
    return _load_weights(name, path, num_classes)


def archive_kind(path: Path) -> str | None:
    """Return "torchscript" or "export" if the file is one, by its contents; else None."""
    if not path.is_file() or not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        names = {entry.partition("/")[2] for entry in archive.namelist()}
    if "constants.pkl" in names:
        return "torchscript"
    return "export" if "models/model.json" in names else None


def _load_archive(
    kind: str, path: Path, device: torch.device, student: Preprocessing
) -> LoadedTeacher:
    name = f"{kind}:{path.name}"
    model: nn.Module
    if kind == "torchscript":
        model = torch.jit.load(path, map_location=device)
    else:
        model = move_to_device_pass(torch.export.load(path), device).module()
    return LoadedTeacher(model, name, student, path, hash_state(model), program=path)


def _load_callable(name: str, path: Path | None, student: Preprocessing) -> LoadedTeacher:
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # another module that this one imports
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        fault = f"no module {module_name!r} on the Python path"
        raise ValueError(f"the teacher {name!r}: {fault}") from error
    if not hasattr(module, attribute):
        raise ValueError(f"the teacher {name!r}: module {module_name!r} has no {attribute!r}")
    model = getattr(module, attribute)
    if not isinstance(model, nn.Module) and _needs_no_arguments(model):
        model = model()
    if not callable(model):
        rule = "must be a network, a function of images, or a function that makes one"
        raise ValueError(f"the teacher {name!r} {rule}")
    if path is not None and isinstance(model, nn.Module):
        _load_state(model, read_weights(path)[0], name)
    program = Path(inspect.getfile(module))
    weights = hash_state(model) if isinstance(model, nn.Module) else None
    return LoadedTeacher(model, name, student, path or program, weights, program)


def _needs_no_arguments(function: Callable[..., object]) -> bool:
    try:
        inspect.signature(function).bind()
    except TypeError:
        return False
    return True


def _load_weights(name: str, path: Path, num_classes: int) -> LoadedTeacher:
    state, metadata = read_weights(path)
    name = name or metadata.get("model", "")
    load = _load_student if name in SIZES else _load_timm
    loaded = load(name, path, state, metadata, num_classes)
    return replace(
        loaded,
        preprocessing=_read_preprocessing(loaded.preprocessing, metadata),
        classes=_read_classes(metadata),
        weights=hash_tensors(state),
    )


def _load_student(
    name: str, path: Path, state: StateDict, metadata: dict[str, str], num_classes: int
) -> LoadedTeacher:
    sizes = infer_student_sizes(state, metadata)
    check_num_classes(name, path, state["head.weight"].shape[0], num_classes)
    student = build_student(name, **sizes)  # type: ignore[arg-type]
    fit_student_weights(student, state)
    mean, std = timm.data.IMAGENET_DEFAULT_MEAN, timm.data.IMAGENET_DEFAULT_STD
    preprocessing = Preprocessing(mean, std, student.image_size)
    return LoadedTeacher(student, name, preprocessing, path, num_classes=num_classes)


def _load_timm(
    name: str, path: Path, state: StateDict, metadata: dict[str, str], num_classes: int
) -> LoadedTeacher:
    if not name or not timm.is_model(name):
        rule = "must be a timm model, a kind of file or module:callable"
        raise ValueError(f"--teacher-model {rule} (got {name!r}){suggest_names(name)}")
    config = timm.get_pretrained_cfg(name)
    classifier = config.classifier if isinstance(config.classifier, str) else config.classifier[0]
    if f"{classifier}.weight" in state:
        check_num_classes(name, path, state[f"{classifier}.weight"].shape[0], num_classes)
    default = Preprocessing(tuple(config.mean), tuple(config.std), config.input_size[-1])
    preprocessing = _read_preprocessing(default, metadata)
    # a network with a position embedding is built for one size, the others take any
    extra = {"img_size": preprocessing.size} if config.fixed_input_size else {}
    model = timm.create_model(name, pretrained=False, num_classes=num_classes, **extra)
    _load_state(model, state, name)
    return LoadedTeacher(model, name, preprocessing, path, num_classes=num_classes)


def _read_preprocessing(default: Preprocessing, metadata: dict[str, str]) -> Preprocessing:
    """Return the preprocessing in our own trainer's metadata, else the default."""
    mean = _read_value(metadata, "mean", default.mean)
    std = _read_value(metadata, "std", default.std)
    size = _read_value(metadata, "input_size", default.size)
    for key, values in (("mean", mean), ("std", std)):
        _require(isinstance(values, list | tuple) and len(values) == 3, key, values)
        _require(all(_is_share(value) for value in values), key, values)
    _require(min(std) > 0, "std", std)
    if isinstance(size, list) and size:
        size = size[-1]
    _require(type(size) is int and 1 <= size <= MAX_SIZE, "input_size", size)
    return Preprocessing(tuple(mean), tuple(std), size)


def _is_share(value: object) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1  # type: ignore[operator]


def _read_classes(metadata: dict[str, str]) -> tuple[str, ...] | None:
    classes = _read_value(metadata, "classes", None)
    if classes is None:
        return None
    _require(isinstance(classes, list), "classes", classes)
    _require(all(isinstance(name, str) for name in classes), "classes", classes)
    return tuple(classes)


def _read_value(metadata: dict[str, str], key: str, default: Any) -> Any:
    try:
        return json.loads(metadata[key]) if key in metadata else default
    except (ValueError, RecursionError):
        _require(False, key, metadata[key])


def _require(ok: bool, key: str, value: object) -> None:
    if not ok:
        raise ValueError(f"the teacher's file has an invalid {key} (got {reprlib.repr(value)})")


def _load_state(model: nn.Module, state: StateDict, name: str) -> None:
    check_match(model.state_dict(), state, name)
    model.load_state_dict(state)


def check_num_classes(name: str, path: Path, found: int, num_classes: int) -> None:
    """Raise ValueError unless a teacher has the classes of the data set."""
    if found != num_classes:
        rule = f"must have {num_classes} classes, as the data set has"
        raise ValueError(f"the teacher {name} at {path} {rule} (got {found})")
