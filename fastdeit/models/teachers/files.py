"""Teachers in files: weights of a timm model or of our student, recorded programs, callables.

Weights are read without running code (weights.py). The others are programs: loading a TorchScript
file can write files, loading an exported one can run any command (torch 2.11 has sympy evaluate
strings in it). So each is loaded only if its kind is named; use only files that you trust.
"""

import importlib
import inspect
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn
from torch.export.passes import move_to_device_pass

from fastdeit.config.parse import ARCHIVES, is_callable
from fastdeit.models.execution.form import Logits
from fastdeit.models.hub import find_class_names, read_class_names
from fastdeit.models.network import (
    WeightFile,
    build_network,
    count_classes,
    known_config,
    read_weight_file,
)
from fastdeit.models.sizes import SIZES, infer_student_sizes, is_student, suggest_names
from fastdeit.models.teachers.identity import hash_state
from fastdeit.models.teachers.view import (
    Choose,
    Source,
    View,
    read_extra_files,
    read_extra_json,
    read_metadata,
    read_pretrained_cfg,
    read_settings_beside,
)
from fastdeit.models.weights import check_match
from fastdeit.storage.tensor_files import hash_tensors


@dataclass(frozen=True)
class LoadedTeacher:
    """A teacher as its file has it; num_classes None: only a forward pass can show it.

    weights: a hash of them, as in `identify_file`; None for a function, as it may load them when it
    is first called. program: the file of its code; None for weights. unread: a file of weights that
    was named, and that a function does not read.
    """

    model: Logits
    name: str
    view: View
    source: Path
    weights: str | None = None
    program: Path | None = None
    num_classes: int | None = None
    classes: tuple[str, ...] | None = None
    unread: Path | None = None


def load_file(
    name: str, path: Path | None, num_classes: int, device: torch.device, choose: Choose
) -> LoadedTeacher:
    """Load a teacher by name, kind or "module:callable"; arguments and errors as `load_teacher`.

    choose: returns the view from what the teacher itself and the files beside it name.
    """
    if is_callable(name):
        return _load_callable(name, path, choose)
    if path is None:
        raise ValueError(
            f"the teacher {name!r} needs weights: --teacher-path or --pretrained-teacher"
        )
    kind = archive_kind(path)
    if name in ARCHIVES and kind == name:
        return _load_archive(kind, path, device, choose)
    if name in ARCHIVES:
        fault = f"{path} is not a {name} file" if path.exists() else f"no checkpoint at {path}"
        raise ValueError(fault)
    if kind is not None:
        advice = f"if you trust it, use --teacher-model {kind}"
        raise ValueError(f"{path} is a program ({kind}), not weights: {advice}")
    return _load_weights(name, path, num_classes, choose)


def archive_kind(path: Path) -> str | None:
    """Return "torchscript" or "export" if the file is one, by its contents; else None."""
    if not path.is_file() or not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        names = {entry.partition("/")[2] for entry in archive.namelist()}
    if "constants.pkl" in names:
        return "torchscript"
    return "export" if "models/model.json" in names else None


def _load_archive(kind: str, path: Path, device: torch.device, choose: Choose) -> LoadedTeacher:
    name = f"{kind}:{path.name}"
    view = choose([read_extra_files(path), read_settings_beside(path)])
    model: nn.Module
    with path.open("rb") as file:  # torch takes no path that is not UTF-8
        if kind == "torchscript":
            model = torch.jit.load(file, map_location=device)
        else:
            model = move_to_device_pass(torch.export.load(file), device).module()
    found = (find_class_names(content, where) for where, content in read_extra_json(path))
    classes = next((names for names in found if names is not None), None)
    return LoadedTeacher(model, name, view, path, hash_state(model), path, classes=classes)


def _load_callable(name: str, path: Path | None, choose: Choose) -> LoadedTeacher:
    module_name, _, attribute = name.partition(":")
    module = _import_module(name, module_name)
    if not hasattr(module, attribute):
        raise ValueError(f"the teacher {name!r}: module {module_name!r} has no {attribute!r}")
    named = getattr(module, attribute)
    is_maker = not isinstance(named, nn.Module) and _needs_no_arguments(named)
    model = named() if is_maker else named
    if not callable(model):
        rule = "must be a network, a function of images, or a function that makes one"
        raise ValueError(f"the teacher {name!r} {rule}")
    sources = _load_into(model, path, name) if path else []
    owners = [(name, model), (name, named), (module_name, module)]
    view = choose([*sources, read_pretrained_cfg(owners)])
    program = Path(inspect.getfile(module))
    is_network = isinstance(model, nn.Module)
    weights = hash_state(model) if is_network else None
    unread = None if is_network else path
    return LoadedTeacher(model, name, view, path or program, weights, program, unread=unread)


def _import_module(name: str, module_name: str) -> ModuleType:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # another module that this one imports
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        fault = f"no module {module_name!r} on the Python path"
        raise ValueError(f"the teacher {name!r}: {fault}") from error


def _load_into(model: Logits, path: Path, name: str) -> list[Source]:
    """Load a weight file into a callable that is a network; return the sources of its view."""
    if not isinstance(model, nn.Module):
        return []
    file = read_weight_file(path)
    check_match(model.state_dict(), file.state, name)
    model.load_state_dict(file.state)
    return _find_sources(file)


def _needs_no_arguments(function: Callable[..., object]) -> bool:
    try:
        inspect.signature(function).bind()
    except TypeError:
        return False
    return True


def _load_weights(name: str, path: Path, num_classes: int, choose: Choose) -> LoadedTeacher:
    file = read_weight_file(path)
    name = name or file.architecture
    _check_name(name)
    try:
        check_num_classes(name, file.path, count_classes(name, file), num_classes)
        view = _find_view(name, file, choose)
        model = build_network(name, file, size=view.preprocessing.size)
    except ValueError as error:
        raise ValueError(f"{error}{_name_own_model(name, file)}") from error
    return LoadedTeacher(
        model,
        name,
        view,
        path,
        weights=hash_tensors(file.state),
        num_classes=num_classes,
        classes=read_class_names(file.path, file.metadata),
    )


def _check_name(name: str) -> None:
    if name not in SIZES and not timm.is_model(name):
        rule = "must be a timm model, a kind of file or module:callable"
        raise ValueError(f"--teacher-model {rule} (got {name!r}){suggest_names(name)}")


def _find_view(name: str, file: WeightFile, choose: Choose) -> View:
    """Return the view: of the file, of the JSON beside it, or of the architecture."""
    known = Source(f"timm's {name}", vars(known_config(name)))
    if not (name in SIZES and is_student(file.state)):
        return choose([*_find_sources(file), known])
    size = infer_student_sizes(file.state, {})["image_size"]
    colours = {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD}
    view = choose([*_find_sources(file), Source("DeiT", colours | {"input_size": size})])
    _check_patches(name, view, file.state["patch_embed.proj.weight"].shape[-1])
    return view


def _find_sources(file: WeightFile) -> list[Source]:
    """Return the sources of a weight file's view: itself, and the JSON file beside it."""
    return [read_metadata(file.metadata, file.path), read_settings_beside(file.path)]


def _check_patches(name: str, view: View, patch_size: int) -> None:
    """Raise ValueError unless the input size is a number of whole patches."""
    size = view.preprocessing.size
    if size % patch_size:
        rule = f"must be a multiple of {patch_size}, the patch size of the teacher {name}"
        origin = view.origins["input_size"]
        raise ValueError(f"--teacher-input-size {rule} (got {size}, from {origin})")


def _name_own_model(name: str, file: WeightFile) -> str:
    """Return the end of a message: the model that a file names, if it is another than `name`."""
    own = file.architecture or name
    if own == name or not (own in SIZES or timm.is_model(own)):
        return ""
    return f"; {file.path} has the weights of another model: --teacher-model {own}"


def check_num_classes(name: str, path: Path, found: int, num_classes: int) -> None:
    """Raise ValueError unless a teacher has the classes of the data set."""
    if found != num_classes:
        rule = f"must have {num_classes} classes, as the data set has"
        cure = "train one on this data set (docs/teachers.md), or use --distillation-type none"
        raise ValueError(f"the teacher {name} at {path} {rule} (got {found}); {cure}")
