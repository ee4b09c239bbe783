"""The live teacher: any frozen network that turns the student's batch into logits.

It sees the same augmented, mixed images as the student, with its own preprocessing: its mean and
std and its input size, where these differ. Source: the teachers of Touvron et al. 2021
(2012.12877), table 2.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import torch
import torch.nn.functional as F
from torch import nn

from fastdeit.config.parse import ARCHIVES
from fastdeit.models.execution.compilation import compile_function
from fastdeit.models.execution.folding import fold_batch_norms
from fastdeit.models.execution.form import AS_IT_IS, Execution, Logits, run_in_parts
from fastdeit.models.execution.memory import Memory, measure_memory
from fastdeit.models.sources import find_weights
from fastdeit.models.teachers.files import LoadedTeacher, check_num_classes, load_file
from fastdeit.models.teachers.identity import hash_state
from fastdeit.models.teachers.view import STUDENT, Preprocessing, Source, View, choose_view
from fastdeit.models.weights import hash_weights


class Teacher:
    """A frozen network behind the student's input; made by `load_teacher`.

    Attributes: name, num_classes, classes (their names if the file has them, else None),
    preprocessing (its own), device, dtype.
    """

    def __init__(
        self,
        loaded: LoadedTeacher,
        *,
        num_classes: int,
        device: torch.device,
        dtype: torch.dtype,
        student: Preprocessing,
        execution: Execution = AS_IT_IS,
    ) -> None:
        self.name = loaded.name
        self.preprocessing = loaded.view.preprocessing
        self.classes = loaded.classes
        self.num_classes = num_classes
        self.device = device
        self.dtype = dtype
        self._elements = _count_elements(loaded.model)
        frozen = _freeze(loaded.model, device, dtype, self.preprocessing.size)
        self._model = frozen.model
        self._norms = frozen.norms
        self._input_dtype = frozen.input_dtype
        # without the network as it was before its norms were folded
        self._loaded = dataclasses.replace(loaded, model=frozen.model)
        # a program is compiled already, or cannot be
        compiles = execution.compiled and not _is_program(frozen.model)
        self.execution = execution._replace(compiled=compiles)
        self._run = compile_function(self._forward) if compiles else self._forward
        self._student = student
        # from the student's normalisation to the teacher's: x · s' / s + (m' - m) / s
        rows = zip(
            student.mean,
            student.std,
            self.preprocessing.mean,
            self.preprocessing.std,
            strict=True,
        )
        affine = [(ss / ts, (sm - tm) / ts) for sm, ss, tm, ts in rows]
        self._factor, self._offset = torch.tensor(affine, device=device).T.reshape(2, 1, -1, 1, 1)

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits (B, K) fp32 for the student's images (B, 3, H, W), any float dtype, on the
        teacher's device."""
        return run_in_parts(self._run, images, self.execution)

    def _forward(self, images: torch.Tensor) -> torch.Tensor:
        autocast = self.dtype if self._input_dtype != self.dtype else None
        with torch.autocast(self.device.type, dtype=autocast, enabled=autocast is not None):
            return self._model(self._prepare(images)).float()

    def _prepare(self, images: torch.Tensor) -> torch.Tensor:
        """Return images in the teacher's size, normalisation, dtype and memory format: nothing is
        launched where these are the student's."""
        size = (self.preprocessing.size, self.preprocessing.size)
        if images.shape[-2:] != size:
            images = F.interpolate(images.float(), size=size, mode="bicubic", antialias=True)
        if self._is_normalised_anew:
            out = torch.empty(
                images.shape,
                dtype=self._input_dtype,
                device=images.device,
                memory_format=torch.channels_last,
            )
            return torch.addcmul(self._offset, images, self._factor, out=out)
        return images.to(self._input_dtype, memory_format=torch.channels_last)

    @property
    def _is_normalised_anew(self) -> bool:
        own, student = self.preprocessing, self._student
        return (own.mean, own.std) != (student.mean, student.std)

    def identity(self) -> dict[str, Any]:
        """Return what decides the output for an image, but for rounding, as JSON values by name
        (docs/teachers.md)."""
        kind = self.name.partition(":")[0]
        return {
            # a recorded program may have another file name
            "name": kind if kind in ARCHIVES else self.name,
            "weights": self.weights,
            "program": self.program,
            "mean": list(self.preprocessing.mean),
            "std": list(self.preprocessing.std),
            "input_size": self.preprocessing.size,
        }

    @functools.cached_property
    def weights(self) -> str | None:
        """Return the hash of all its tensors; None for a function that shows none. A function may
        load them when it is first called, so its hash is computed when it is first read."""
        return self._loaded.weights or hash_state(self._model)

    @functools.cached_property
    def program(self) -> str | None:
        """Return the hash of the file of its code; None for a network that timm or we build."""
        program = self._loaded.program
        return hash_weights(program) if program else None

    @functools.cached_property
    def sha256(self) -> str:
        """Return the hash of the weight file, or of a callable's source file: the identity in older
        caches."""
        return hash_weights(self._loaded.source)

    @property
    def is_network(self) -> bool:
        """Return True if it is a network, whose output depends on nothing but images and weights;
        False for programs and functions."""
        return isinstance(self._model, nn.Module) and self._loaded.program is None

    @property
    def precision(self) -> str:
        """Return the name of the dtype, such as float32."""
        return str(self.dtype).removeprefix("torch.")

    def describe(self) -> str:
        """Return one line for the log: name, parameters, classes, dtype, hashes."""
        parts = [f"{self.num_classes} classes"]
        if self._elements:
            parts.insert(0, f"{self._elements / 1e6:.1f} M parameters")
        parts.append(self.precision)
        parts.append(f"weights {self.weights[:12]}" if self.weights else "no weights found")
        if self.program:
            parts.append(f"program {self.program[:12]}")
        if self._loaded.unread is not None:
            parts.append(f"a function, which does not read {self._loaded.unread}")
        return f"{self.name}: {', '.join(parts)}"

    def describe_view(self) -> str:
        """Return one line for the log: the mean, std and size of its images, and their sources."""
        return self._loaded.view.describe(self._student.size)

    def measure_memory(self, batch: int) -> Memory:
        """Return its memory for a batch of so many images, of which `Execution.batch` run at once;
        for a program or a function, the activations are unknown."""
        if not isinstance(self._model, nn.Module):
            return Memory(0, None)
        at_once = min(batch, self.execution.batch or batch)
        size = self.preprocessing.size
        shape = (at_once, 3, size, size)
        return measure_memory(
            self._model, torch.empty(shape, dtype=self._input_dtype, device="meta")
        )

    def describe_execution(self, batch: int) -> str:
        """Return one line for the log: the form in which it runs on a batch of so many images, and
        its memory."""
        parts = [f"{self._norms} batch norms folded into convolutions"] if self._norms else []
        at_once = min(batch, self.execution.batch or batch)
        return ", ".join(
            [*parts, *self.execution.describe(), self.measure_memory(batch).describe(at_once)]
        )


def load_teacher(
    name: str | None,
    path: str | Path | None,
    *,
    num_classes: int,
    device: torch.device | str,
    dtype: torch.dtype,
    student: Preprocessing,
    asked: Mapping[str, Any] | None = None,
    execution: Execution = AS_IT_IS,
) -> Teacher:
    """Load a frozen teacher for images that were made for a student.

    name: a timm model or one of ours, "torchscript", "export", or "module:callable"; may be empty
    if the file or its config.json has it. path: any source of weights (models/sources.py).
    num_classes: of the data set. asked: mean, std and input_size that replace the teacher's own.
    Raises ValueError with one line: no file, unknown name, weights that do not fit, another number
    of classes, a mean that no network can have.
    """
    device = torch.device(device)

    def choose(own: Sequence[Source]) -> View:
        values = {"mean": student.mean, "std": student.std, "input_size": student.size}
        return choose_view([Source("the flags", asked or {}), *own, Source(STUDENT, values)])

    place = find_weights(path) if path else None
    loaded = load_file(name or "", place, num_classes, device, choose)
    if loaded.classes is not None:
        check_num_classes(loaded.name, loaded.source, len(loaded.classes), num_classes)
    teacher = Teacher(
        loaded,
        num_classes=num_classes,
        device=device,
        dtype=dtype,
        student=student,
        execution=execution,
    )
    if loaded.num_classes is None:
        _check_output(teacher)
    return teacher


class _Frozen(NamedTuple):
    """A network ready for inference, the dtype of the images that it takes, and the number of its
    batch norms that were folded into convolutions."""

    model: Logits
    input_dtype: torch.dtype
    norms: int = 0


def _freeze(model: Logits, device: torch.device, dtype: torch.dtype, size: int) -> _Frozen:
    """Prepare a network for inference on images (B, 3, size, size)."""
    if not isinstance(model, nn.Module):
        return _Frozen(model, dtype)
    if _is_program(model):
        # a recorded program may have dtypes in its code: its own are not changed, and autocast
        # changes what can be changed
        if isinstance(model, torch.jit.ScriptModule):
            model.eval()
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        return _Frozen(model, next((p.dtype for p in model.parameters()), torch.float32))
    network, norms = fold_batch_norms(model.eval().to(device), size)
    network.eval().requires_grad_(False).to(device, dtype)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return _Frozen(network, dtype, norms)


def _is_program(model: Logits) -> TypeGuard[torch.jit.ScriptModule | torch.fx.GraphModule]:
    return isinstance(model, torch.jit.ScriptModule | torch.fx.GraphModule)


def _count_elements(model: Logits) -> int:
    return sum(p.numel() for p in model.parameters()) if isinstance(model, nn.Module) else 0


def _check_output(teacher: Teacher) -> None:
    """Raise ValueError unless the teacher returns logits (2, classes) for two images of zeros."""
    size = teacher._student.size
    try:
        logits = teacher(torch.zeros(2, 3, size, size, device=teacher.device))
    except (RuntimeError, AssertionError, AttributeError) as error:
        reason = str(error).strip().splitlines()[-1]
        fault = f"does not run on a batch of two images: {reason}"
        raise ValueError(f"the teacher {teacher.name} {fault}") from error
    expected = (2, teacher.num_classes)
    if logits.shape != expected:
        got = tuple(logits.shape)
        rule = f"must give {expected} logits for two images and the classes of the data set"
        raise ValueError(f"the teacher {teacher.name} {rule} (got {got})")
