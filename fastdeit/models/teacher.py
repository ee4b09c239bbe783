"""The live teacher: any frozen network that turns the student's batch into logits.

It sees the same augmented, mixed images as the student, but in its own terms: its mean and std, its
input size, where these differ. It may be a timm model or one of our students with a local
checkpoint, a TorchScript or torch.export file, or an importable callable. Weights are read without
running code (weights.py). The others are programs: loading a TorchScript file can write files,
loading an exported one can run any command (torch 2.11 has sympy evaluate strings in it). So each
is taken only where its kind is asked for by name; use only ones you trust. Source: the teachers of
Touvron et al. 2021 (2012.12877), table 2.
"""

import difflib
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
import torch.nn.functional as F
from torch import nn
from torch.export.passes import move_to_device_pass

from fastdeit.models.student import SIZES, build_student
from fastdeit.models.weights import (
    StateDict,
    check_match,
    file_sha256,
    fit_student_weights,
    read_weights,
    student_shape,
)

ARCHIVES = ("torchscript", "export")
MAX_SIZE = 2048
"""Pixels a side that a teacher's file may ask for."""

Logits = Callable[[torch.Tensor], torch.Tensor]


class View(NamedTuple):
    """How a network is shown its images: normalised by mean and std, size pixels a side."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: int


@dataclass(frozen=True)
class Loaded:
    """A teacher as its file gives it; num_classes None: only a forward pass can tell."""

    model: Logits
    name: str
    view: View
    source: Path
    num_classes: int | None = None
    classes: tuple[str, ...] | None = None


class Teacher:
    """A frozen network behind the student's input; made by `load_teacher`.

    Attributes: name, num_classes, classes (their names when the file holds them, else None), sha256
    (of the weight file, or of a callable's source file), view (its own), device, dtype.
    """

    def __init__(
        self,
        loaded: Loaded,
        *,
        num_classes: int,
        device: torch.device,
        dtype: torch.dtype,
        student: View,
    ) -> None:
        self.name, self.view, self.classes = loaded.name, loaded.view, loaded.classes
        self.num_classes, self.device, self.dtype = num_classes, device, dtype
        self.sha256 = file_sha256(loaded.source)
        self._model = loaded.model
        self._input_dtype = _freeze(loaded.model, device, dtype)
        self._student = student
        # (p - m) / s of the teacher from that of the student: x · s' / s + (m' - m) / s
        rows = zip(student.mean, student.std, loaded.view.mean, loaded.view.std, strict=True)
        affine = [(ss / ts, (sm - tm) / ts) for sm, ss, tm, ts in rows]
        self._factor, self._offset = torch.tensor(affine, device=device).T.reshape(2, 1, -1, 1, 1)

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (B, K) fp32 of the student's images (B, 3, H, W), any float dtype, on the
        teacher's device."""
        autocast = self.dtype if self._input_dtype != self.dtype else None
        with torch.autocast(self.device.type, dtype=autocast, enabled=autocast is not None):
            return self._model(self._prepare(images)).float()

    def _prepare(self, images: torch.Tensor) -> torch.Tensor:
        size = (self.view.size, self.view.size)
        if images.shape[-2:] != size:
            images = F.interpolate(images.float(), size=size, mode="bicubic", antialias=True)
        if (self.view.mean, self.view.std) != (self._student.mean, self._student.std):
            images = images.float() * self._factor + self._offset
        return images.to(self._input_dtype, memory_format=torch.channels_last)

    def describe(self) -> str:
        """One line for the log: name, size, classes, input, dtype, digest."""
        parameters = (
            sum(p.numel() for p in self._model.parameters())
            if isinstance(self._model, nn.Module)
            else 0
        )
        weights = f"{parameters / 1e6:.1f} M parameters, " if parameters else ""
        dtype = str(self.dtype).removeprefix("torch.")
        shown = f"{self.view.size} px"
        if self.view.size != self._student.size:
            shown += f" (resized from {self._student.size})"
        return f"{self.name}: {weights}{self.num_classes} classes, {shown}, {dtype}, sha256 {self.sha256[:12]}"


def load_teacher(
    name: str | None,
    path: str | Path | None,
    *,
    num_classes: int,
    device: torch.device | str,
    dtype: torch.dtype,
    student_mean: tuple[float, ...],
    student_std: tuple[float, ...],
    student_size: int,
) -> Teacher:
    """Load a frozen teacher for images made for a student (normalised so, of this size).

    name: a timm model or one of ours, "torchscript", "export", or "module:callable"; may be empty
    for a run folder of ours, which says it. num_classes: the data set's. Raises ValueError with one
    line: no file, unknown name, weights that do not fit, another class count.
    """
    device = torch.device(device)
    student = View(tuple(student_mean), tuple(student_std), student_size)
    loaded = _load(name or "", Path(path) if path else None, num_classes, device, student)
    _check_classes(loaded, num_classes)
    teacher = Teacher(loaded, num_classes=num_classes, device=device, dtype=dtype, student=student)
    if loaded.num_classes is None:
        _probe(teacher)
    return teacher


def _load(
    name: str, path: Path | None, num_classes: int, device: torch.device, student: View
) -> Loaded:
    if ":" in name and not name.startswith("hf-hub:"):
        return _load_callable(name, path, student)
    if path is None:
        raise ValueError(f"the teacher {name!r} needs a local checkpoint")
    kind = archive_kind(path)
    if name in ARCHIVES and kind == name:
        return _load_archive(kind, path, device, student)
    if name in ARCHIVES:
        raise ValueError(
            f"{path} is no {name} file" if path.exists() else f"no checkpoint at {path}"
        )
    if kind is not None:
        raise ValueError(
            f"{path} is a program ({kind}), no weights: if you trust it, use --teacher-model {kind}"
        )
    state, metadata = read_weights(path)
    name = name or metadata.get("model", "")
    own = _load_student if name in SIZES else _load_timm
    loaded = own(name, path, state, metadata, num_classes)
    classes = _told(metadata, "classes", None)
    named = classes is None or (
        isinstance(classes, list) and all(isinstance(one, str) for one in classes)
    )
    _require_told(named, "classes", classes)
    return replace(
        loaded,
        view=_view(loaded.view, metadata),
        classes=None if classes is None else tuple(classes),
    )


def archive_kind(path: Path) -> str | None:
    """ "torchscript" or "export" when the file at path is one, by its contents; else None."""
    if not path.is_file() or not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        names = {entry.partition("/")[2] for entry in archive.namelist()}
    if "constants.pkl" in names:
        return "torchscript"
    return "export" if "models/model.json" in names else None


def _load_archive(kind: str, path: Path, device: torch.device, student: View) -> Loaded:
    if kind == "torchscript":
        return Loaded(
            torch.jit.load(path, map_location=device), f"torchscript:{path.name}", student, path
        )
    program = torch.export.load(path)
    moved = move_to_device_pass(program, device)
    return Loaded(moved.module(), f"export:{path.name}", student, path)


def _load_callable(name: str, path: Path | None, student: View) -> Loaded:
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise ValueError(
            f"the teacher {name!r}: no module {module_name!r} on the Python path"
        ) from error
    if not hasattr(module, attribute):
        raise ValueError(f"the teacher {name!r}: module {module_name!r} has no {attribute!r}")
    model = getattr(module, attribute)
    if not isinstance(model, nn.Module) and _takes_nothing(model):
        model = model()
    if not callable(model):
        raise ValueError(
            f"the teacher {name!r} is neither a network nor a function that makes or is one"
        )
    if path is not None and isinstance(model, nn.Module):
        _fit(model, read_weights(path)[0], name)
    return Loaded(model, name, student, path or Path(inspect.getfile(module)))


def _takes_nothing(function: Callable[..., object]) -> bool:
    try:
        inspect.signature(function).bind()
    except TypeError:
        return False
    return True


def _load_student(
    name: str, path: Path, state: StateDict, metadata: dict[str, str], num_classes: int
) -> Loaded:
    shape = student_shape(state, metadata)
    _check_count(name, path, state["head.weight"].shape[0], num_classes)
    student = build_student(name, **shape)  # type: ignore[arg-type]
    fit_student_weights(student, state)
    view = View(timm.data.IMAGENET_DEFAULT_MEAN, timm.data.IMAGENET_DEFAULT_STD, student.image_size)
    return Loaded(student, name, view, path, num_classes)


def _load_timm(
    name: str, path: Path, state: StateDict, metadata: dict[str, str], num_classes: int
) -> Loaded:
    if not name or not timm.is_model(name):
        near = difflib.get_close_matches(name, [*SIZES, *timm.list_models()], n=3)
        hint = f"; near: {', '.join(near)}" if near else ""
        raise ValueError(
            f"unknown teacher {name!r}: name a timm model, a file's kind or module:callable{hint}"
        )
    config = timm.get_pretrained_cfg(name)
    classifier = config.classifier if isinstance(config.classifier, str) else config.classifier[0]
    if f"{classifier}.weight" in state:
        _check_count(name, path, state[f"{classifier}.weight"].shape[0], num_classes)
    view = _view(View(tuple(config.mean), tuple(config.std), config.input_size[-1]), metadata)
    # a network with a position embedding is built for one size, the others take any
    extra = {"img_size": view.size} if config.fixed_input_size else {}
    model = timm.create_model(name, pretrained=False, num_classes=num_classes, **extra)
    _fit(model, state, name)
    return Loaded(model, name, view, path, num_classes)


def _view(default: View, metadata: dict[str, str]) -> View:
    """The view that our own trainer's metadata states, else the default."""
    mean, std, size = (
        _told(metadata, key, old)
        for key, old in zip(("mean", "std", "input_size"), default, strict=True)
    )
    for key, values in (("mean", mean), ("std", std)):
        numbers = isinstance(values, list | tuple) and all(
            type(one) in (int, float) and 0 <= one <= 1 for one in values
        )
        _require_told(numbers and len(values) == 3, key, values)
    _require_told(min(std) > 0, "std", std)
    size = size[-1] if isinstance(size, list) and size else size
    _require_told(type(size) is int and 1 <= size <= MAX_SIZE, "input_size", size)
    return View(tuple(mean), tuple(std), size)


def _told(metadata: dict[str, str], key: str, default: Any) -> Any:
    try:
        return json.loads(metadata[key]) if key in metadata else default
    except (ValueError, RecursionError):
        _require_told(False, key, metadata[key])


def _require_told(ok: bool, key: str, value: object) -> None:
    if not ok:
        raise ValueError(
            f"the teacher's file says of itself {key} {reprlib.repr(value)}, which no teacher has"
        )


def _fit(model: nn.Module, state: StateDict, name: str) -> None:
    check_match(model.state_dict(), state, name)
    model.load_state_dict(state)


def _freeze(model: Logits, device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """Make a network ready for inference in place; returns the dtype of the images that it takes."""
    if not isinstance(model, nn.Module):
        return dtype
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    if isinstance(model, torch.jit.ScriptModule | torch.fx.GraphModule):
        # a recorded program may name dtypes in its code: it keeps its own, and autocast brings the
        # other
        if isinstance(model, torch.jit.ScriptModule):
            model.eval()
        return next((p.dtype for p in model.parameters()), torch.float32)
    model.eval().to(device, dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return dtype


def _check_classes(loaded: Loaded, num_classes: int) -> None:
    if loaded.classes is not None and len(loaded.classes) != num_classes:
        _check_count(loaded.name, loaded.source, len(loaded.classes), num_classes)


def _check_count(name: str, path: Path, found: int, num_classes: int) -> None:
    if found != num_classes:
        raise ValueError(
            f"the teacher {name} at {path} knows {found} classes, the data set has {num_classes}"
        )


def _probe(teacher: Teacher) -> None:
    size = teacher._student.size
    try:
        logits = teacher(torch.zeros(2, 3, size, size, device=teacher.device))
    except (RuntimeError, AssertionError, AttributeError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise ValueError(
            f"the teacher {teacher.name} does not run on a batch of two images: {reason}"
        ) from error
    if logits.ndim != 2 or len(logits) != 2 or logits.shape[1] != teacher.num_classes:
        got = tuple(logits.shape)
        raise ValueError(
            f"the teacher {teacher.name} gives {got}, the data set has {teacher.num_classes} classes"
        )
