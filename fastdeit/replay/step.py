"""One optimizer step run again: the loss of every micro-batch and of every sample, and the plan of
each sample.

The step itself is `Trainer.train_step`, with a criterion that also looks at single samples.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fastdeit.data.index import Index
from fastdeit.data.loaders.batch import Batch
from fastdeit.display.text import printable
from fastdeit.kernels.distill import LossParts
from fastdeit.plan.digest import add_digests
from fastdeit.plan.operations import OPS
from fastdeit.plan.plan import SampleParams
from fastdeit.training.losses import Criterion
from fastdeit.training.trainer import Trainer

Outputs = torch.Tensor | tuple[torch.Tensor, torch.Tensor]
"""The logits (B, K) of one head, or of both."""


@dataclass(frozen=True)
class Losses:
    """Mean losses of a micro-batch, or the losses of a sample."""

    loss: float
    base: float
    distill: float


@dataclass(frozen=True)
class SampleLosses(Losses):
    """The losses of a sample, and the class that its teacher chose; None without a teacher."""

    teacher: int | None


@dataclass(frozen=True)
class StepResult:
    """The result of a step on this process; micro-batches and samples are in the batches' order."""

    batches: list[Batch]
    micro_batches: list[Losses]
    samples: list[SampleLosses]
    grad_norm: float
    """The norm of all processes' gradient, before clipping."""
    lr: float
    skipped: bool

    @property
    def digest(self) -> int:
        """Return the digest of this process's samples."""
        return add_digests(*(batch.digest for batch in self.batches))


class SampleCriterion:
    """A criterion that also stores the losses of every sample."""

    def __init__(self, criterion: Criterion) -> None:
        self.criterion = criterion
        self.samples: list[SampleLosses] = []

    def __call__(
        self,
        outputs: Outputs,
        labels: torch.Tensor,
        lam: torch.Tensor,
        teacher_output: torch.Tensor | None = None,
    ) -> LossParts:
        with torch.no_grad():
            for row in range(len(labels)):
                parts = self._of_sample(row, outputs, labels, lam, teacher_output)
                loss, base, distill = torch.stack([part.float() for part in parts]).tolist()
                teacher = _chosen_class(teacher_output, row)
                self.samples.append(SampleLosses(loss, base, distill, teacher))
        return self.criterion(outputs, labels, lam, teacher_output)

    def _of_sample(
        self,
        row: int,
        outputs: Outputs,
        labels: torch.Tensor,
        lam: torch.Tensor,
        teacher_output: torch.Tensor | None,
    ) -> LossParts:
        """Return the losses of one sample.

        The criterion takes pairs: the pair is the sample twice, the second time with its two labels
        swapped and the share of the other label, so that both rows have the same loss.
        """
        # the model may have seen the batch several times, one copy after the other
        first = outputs if isinstance(outputs, torch.Tensor) else outputs[0]
        twice = [each for each in range(row, len(first), len(labels)) for _ in range(2)]
        if isinstance(outputs, torch.Tensor):
            pair_outputs: Any = outputs[twice]
        else:
            pair_outputs = tuple(head[twice] for head in outputs)
        pair_labels = labels[[row, row ^ 1]]
        pair_lam = torch.stack((lam[row], 1 - lam[row]))
        pair_teacher = None if teacher_output is None else teacher_output[[row, row]]
        return self.criterion(pair_outputs, pair_labels, pair_lam, pair_teacher)


def _chosen_class(teacher_output: torch.Tensor | None, row: int) -> int | None:
    """Return the class in a row of a teacher's output: class ids (B,) or logits (B, K)."""
    if teacher_output is None:
        return None
    output = teacher_output[row]
    return int(output.argmax() if output.ndim else output)


def rerun(trainer: Trainer, batches: Iterable[Batch]) -> StepResult:
    """Train the trainer's next step and return its result. A collective."""
    kept: list[Batch] = []
    criterion = SampleCriterion(trainer.criterion)
    *_, grad_norm = trainer.train_step(_keep(batches, kept), criterion).tolist()
    micro_batches = [Losses(*micro.losses.tolist()) for micro in trainer.micro_steps]
    skipped = not trainer.applied
    return StepResult(kept, micro_batches, criterion.samples, grad_norm, trainer.lr, skipped)


def _keep(batches: Iterable[Batch], kept: list[Batch]) -> Iterator[Batch]:
    for batch in batches:
        kept.append(batch)
        yield batch


def describe_samples(batch: Batch, draws: SampleParams, index: Index) -> list[dict[str, Any]]:
    """Return the plan of each sample of a batch as JSON values; draws: of its ordinals."""
    labels = batch.labels.tolist()
    rows = batch.image_index.tolist()
    keep = batch.drop_path_mask.int().tolist()
    samples = []
    for place, ordinal in enumerate(batch.ordinals.tolist()):
        image = {"row": rows[place], "image": index.name(rows[place])}
        known = {"ordinal": ordinal, **image, "class": printable(index.classes[labels[place]])}
        drawn = _describe_draws(draws, place)
        samples.append(known | drawn | {"partner": ordinal ^ 1, "keep": keep[place]})
    return samples


def _describe_draws(draws: SampleParams, row: int) -> dict[str, Any]:
    """Return a row of `SampleParams` as JSON values.

    crop and erase: y, x, height, width. resize: height, width, and y, x of the window. box: y0, x0,
    y1, x1, taken from the partner.
    """
    operations = []
    for op, argument in zip(draws.ops[row].tolist(), draws.op_args[row].tolist(), strict=True):
        if op >= 0:
            operations.append({"name": OPS[op], "argument": argument})
    return {
        "crop": draws.crop[row].tolist(),
        "resize": draws.resize[row].tolist(),
        "flip": bool(draws.flip[row]),
        "operations": operations,
        "erase": _box(draws.erase[row].tolist()),
        "noise_key": int(draws.noise_key[row]),
        "lam": float(draws.lam[row]),
        "box": _box(draws.box[row].tolist()),
    }


def _box(box: Sequence[int]) -> Sequence[int] | None:
    return box if any(box) else None
