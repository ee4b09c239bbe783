"""One optimizer step taken again: what was planned for each sample, and what each part of the step
came to.

The step itself is `Trainer.train_step`, with a criterion that also looks at single samples.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fastdeit.data.batch import Batch
from fastdeit.data.index import Index
from fastdeit.plan.digest import add_digests
from fastdeit.plan.operations import OPS
from fastdeit.plan.plan import SampleParams
from fastdeit.training.losses import DistillationLoss
from fastdeit.training.trainer import LOSSES, Trainer

Line = dict[str, Any]
Outputs = torch.Tensor | tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class StepResult:
    """What one process took of a step; a line each micro-batch, and each sample in the order of the
    batches."""

    batches: list[Batch]
    micro_batches: list[Line]
    samples: list[Line]
    grad_norm: float
    """Of all processes' gradient, before clipping."""
    lr: float
    skipped: bool

    @property
    def digest(self) -> int:
        return add_digests(*(batch.digest for batch in self.batches))


class SampleLosses:
    """A criterion that also keeps the loss of every sample: a line each, with the teacher's
    decision if there is a teacher."""

    def __init__(self, criterion: DistillationLoss) -> None:
        self.criterion = criterion
        self.lines: list[Line] = []

    def __call__(
        self,
        outputs: Outputs,
        labels: torch.Tensor,
        lam: torch.Tensor,
        answer: torch.Tensor | None = None,
    ) -> Any:  # LossParts
        with torch.no_grad():
            parts = torch.stack(
                [self._alone(row, outputs, labels, lam, answer) for row in range(len(labels))]
            )
        lines = [dict(zip(LOSSES, values, strict=True)) for values in parts.tolist()]
        if answer is not None:
            decisions = answer.argmax(-1) if answer.ndim == 2 else answer
            lines = [
                line | {"teacher": decision}
                for line, decision in zip(lines, decisions.tolist(), strict=True)
            ]
        self.lines += lines
        return self.criterion(outputs, labels, lam, answer)

    def _alone(
        self,
        row: int,
        outputs: Outputs,
        labels: torch.Tensor,
        lam: torch.Tensor,
        answer: torch.Tensor | None,
    ) -> torch.Tensor:
        """fp32 (3,): the losses of a sample, as those of a pair of it and of itself mixed the other
        way round."""
        twice = [row, row]
        logits = (
            outputs[twice]
            if isinstance(outputs, torch.Tensor)
            else tuple(head[twice] for head in outputs)
        )
        shares = torch.stack((lam[row], 1 - lam[row]))
        twice_answered = None if answer is None else answer[twice]
        pair = labels[[row, row ^ 1]]
        parts = self.criterion(logits, pair, shares, twice_answered)  # type: ignore[arg-type]
        return torch.stack([part.float() for part in parts])


def rerun(trainer: Trainer, batches: Iterable[Batch]) -> StepResult:
    """The trainer's next step. A collective."""
    kept: list[Batch] = []
    watching = SampleLosses(trainer.criterion)
    *_, grad_norm = trainer.train_step(_keeping(batches, kept), watching).tolist()
    micro_batches = [
        dict(zip(LOSSES, micro.losses.tolist(), strict=True)) for micro in trainer.micro_steps
    ]
    return StepResult(
        kept, micro_batches, watching.lines, grad_norm, trainer.lr, not trainer.applied
    )


def _keeping(batches: Iterable[Batch], kept: list[Batch]) -> Iterator[Batch]:
    for batch in batches:
        kept.append(batch)
        yield batch


def describe_samples(batch: Batch, draws: SampleParams, index: Index) -> list[Line]:
    """What was planned for each sample of a batch, in words and plain numbers; draws: those of its
    ordinals."""
    classes = [index.classes[label] for label in batch.labels.tolist()]
    keep, ordinals = batch.drop_path_mask.int().tolist(), batch.ordinals.tolist()
    lines = []
    for row, (ordinal, image) in enumerate(zip(ordinals, batch.image_index.tolist(), strict=True)):
        line = {"ordinal": ordinal, "row": image, "image": index.name(image), "class": classes[row]}
        lines.append(
            line | _describe_draws(draws, row) | {"partner": ordinal ^ 1, "keep": keep[row]}
        )
    return lines


def _describe_draws(draws: SampleParams, row: int) -> Line:
    """As `SampleParams` has it: crop and erase are y, x, height, width; resize is height, width and
    y, x of the window; box is y0, x0, y1, x1, taken from the partner."""
    drawn = zip(draws.ops[row].tolist(), draws.op_args[row].tolist(), strict=True)
    return {
        "crop": draws.crop[row].tolist(),
        "resize": draws.resize[row].tolist(),
        "flip": bool(draws.flip[row]),
        "operations": [
            {"name": OPS[op], "argument": argument} for op, argument in drawn if op >= 0
        ],
        "erase": _box(draws.erase[row].tolist()),
        "noise_key": int(draws.noise_key[row]),
        "lam": float(draws.lam[row]),
        "box": _box(draws.box[row].tolist()),
    }


def _box(box: Sequence[int]) -> Sequence[int] | None:
    return box if any(box) else None
