"""The record of a step that was skipped because a loss or a gradient was not finite."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

from fastdeit.plan.digest import add_digests, show_digest
from fastdeit.training.trainer import MicroStep


@dataclass(frozen=True, kw_only=True)
class StepPlace:
    """A step and where it lies in its epoch; every record of a step begins with these fields."""

    step: int
    """The number of optimizer steps done before it."""
    epoch: int = 0
    ordinals: tuple[int, int] = (0, 0)
    """The ordinals of the step's samples: from, to (exclusive)."""
    time: float = 0.0
    """The time of the record, in seconds since 1970."""


@dataclass(frozen=True)
class BadMicroBatch:
    """A micro-batch whose loss was not finite, with its samples."""

    rank: int
    micro_batch: int
    ordinals: tuple[int, ...]
    rows: tuple[int, ...]
    images: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class BadStep(StepPlace):
    """A line of bad-steps.jsonl."""

    digest: str = ""
    """Hash of the step's samples; "" in a record without one."""
    grad_norm: float | str = ""
    losses: tuple[tuple[float | str, ...], ...] = ()
    """The losses by rank and micro-batch; a number that is not finite is given by its name, as JSON
    has none."""
    not_finite: tuple[BadMicroBatch, ...] = ()
    """The micro-batches whose loss was not finite; empty if only the gradient was not finite."""

    @property
    def cause(self) -> str:
        """Return what was not finite, in words."""
        ranks = sorted({micro_batch.rank for micro_batch in self.not_finite})
        if not ranks:
            return "the gradient is not finite"
        return f"the loss is not finite on rank {', '.join(map(str, ranks))}"


def gather_bad_step(
    place: Mapping[str, Any], micro_steps: Sequence[MicroStep], name: Callable[[int], str]
) -> BadStep:
    """Return the record of a skipped step from what every rank saw of it. A collective.

    Waits for the device. place: the fields of `StepPlace`; micro_steps: this rank's; name: returns
    the name of an image by its row.
    """
    losses = [micro.losses[0].item() for micro in micro_steps]
    bad = [number for number, loss in enumerate(losses) if not math.isfinite(loss)]
    mine = {
        "losses": tuple(_json_number(loss) for loss in losses),
        "not_finite": [_describe(number, micro_steps[number], name) for number in bad],
        "digest": add_digests(*(micro.digest for micro in micro_steps)),
    }
    ranks: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(ranks, mine)
    return BadStep(
        **place,
        digest=show_digest(add_digests(*(each["digest"] for each in ranks))),
        grad_norm=_json_number(math.inf),  # DeepSpeed reports no other value for a skipped step
        losses=tuple(each["losses"] for each in ranks),
        not_finite=tuple(micro_batch for each in ranks for micro_batch in each["not_finite"]),
    )


def _describe(number: int, micro: MicroStep, name: Callable[[int], str]) -> BadMicroBatch:
    rows = tuple(micro.image_index.tolist())
    return BadMicroBatch(
        rank=dist.get_rank(),
        micro_batch=number,
        ordinals=tuple(micro.ordinals.tolist()),
        rows=rows,
        images=tuple(name(row) for row in rows),
    )


def _json_number(value: float) -> float | str:
    """Return the number, or its name if it is not finite."""
    return value if math.isfinite(value) else str(value)
