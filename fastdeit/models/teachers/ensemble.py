"""Several teachers as one: the mean of their logits, each with its own view of the images."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from fastdeit.models.execution.form import AS_IT_IS, Execution
from fastdeit.models.execution.memory import Memory
from fastdeit.models.teachers.identity import combine_facts
from fastdeit.models.teachers.teacher import Teacher, load_teacher
from fastdeit.models.teachers.view import Preprocessing


class Ensemble:
    """The mean of the logits of several teachers, with the methods of a `Teacher`.

    They run one after the other: in addition to their weights, memory is needed only for the
    activations of one.
    """

    def __init__(self, teachers: Sequence[Teacher]) -> None:
        self.teachers = tuple(teachers)
        first = self.teachers[0]
        self.num_classes = first.num_classes
        self.device = first.device
        self.dtype = first.dtype
        self.precision = first.precision
        self.name = ", ".join(teacher.name for teacher in teachers)

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits (B, K) fp32 for the student's images (B, 3, H, W)."""
        total = self.teachers[0](images)
        for teacher in self.teachers[1:]:
            total = total + teacher(images)
        return total / len(self.teachers)

    @property
    def is_network(self) -> bool:
        """Return True if each is a network, and no program or function."""
        return all(teacher.is_network for teacher in self.teachers)

    def identity(self) -> dict[str, Any]:
        """Return the identities of all teachers, in their order: a list by name."""
        return combine_facts([teacher.identity() for teacher in self.teachers])

    @property
    def sha256(self) -> list[str]:
        """Return the hashes of the files, as an older cache has that of one teacher."""
        return [teacher.sha256 for teacher in self.teachers]

    def describe(self) -> str:
        """Return one line for the log."""
        lines = [teacher.describe() for teacher in self.teachers]
        return f"the mean of {len(lines)}: {'; '.join(lines)}"

    def describe_view(self) -> str:
        """Return one line for the log: the images of each teacher."""
        lines = [f"{teacher.name}: {teacher.describe_view()}" for teacher in self.teachers]
        return "; ".join(lines)

    def describe_execution(self, batch: int) -> str:
        """Return one line for the log: the form in which each teacher runs, and its memory."""
        lines = [f"{each.name}: {each.describe_execution(batch)}" for each in self.teachers]
        return "; ".join(lines)

    def measure_memory(self, batch: int) -> Memory:
        """Return the memory of all weights, and of the activations of the teacher with the most."""
        each = [teacher.measure_memory(batch) for teacher in self.teachers]
        known = [memory.activations for memory in each if memory.activations is not None]
        weights = sum(memory.weights for memory in each)
        return Memory(weights, max(known) if len(known) == len(each) else None)


LiveTeacher = Teacher | Ensemble
"""A teacher that runs in a training step."""


def load_teachers(
    sources: Sequence[tuple[str, str]],
    *,
    num_classes: int,
    classes: tuple[str, ...] | None,
    device: torch.device | str,
    dtype: torch.dtype,
    student: Preprocessing,
    asked: Mapping[str, Any] | None = None,
    execution: Execution = AS_IT_IS,
) -> LiveTeacher:
    """Load one teacher or an ensemble.

    sources: name and weights of each, as for `load_teacher`, which describes the other arguments
    and errors. classes: of the data set, by label; None: unknown. Raises ValueError if a file names
    other classes.
    """
    teachers = []
    for name, path in sources:
        teacher = load_teacher(
            name,
            path,
            num_classes=num_classes,
            device=device,
            dtype=dtype,
            student=student,
            asked=asked,
            execution=execution,
        )
        if None not in (classes, teacher.classes) and classes != teacher.classes:
            rule = "must be a teacher for the classes of the data set"
            raise ValueError(f"--teacher-path {rule} (got {path}, which names others)")
        teachers.append(teacher)
    return Ensemble(teachers) if len(teachers) > 1 else teachers[0]
