"""The plan of a device's memory: what a run will need, by part.

The state follows from the number of parameters, ZeRO's stage and the ranks; activations and
gradients of a micro-batch from one pass on torch's meta device (usage.py). The memory that the CUDA
context, NCCL and DALI allocate outside of torch is not in it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

GB = 1e9
RESERVE = 0.05
"""The share of all parts that torch's allocator needs in addition: rounded sizes and gaps between
them."""
NEAR = 0.9
"""The share of a device's free memory above which a plan does not fit."""
CONTEXT = 0.7e9
"""Bytes of CUDA's context and cuBLAS's workspaces, which no plan has."""


class ZeroLayout(NamedTuple):
    """Settings that decide how many copies and partitions of the weights are on a device."""

    stage: int
    """The ZeRO stage that runs: 1, 2 or 3."""
    ranks: int
    itemsize: int
    """The bytes of an element in the training precision."""
    micro_steps: int
    is_flat: bool
    """True if the step is ours (zero/flat_update.py)."""
    offloads: bool
    """True if the optimizer is in the memory of the CPU."""
    ema: bool
    """True if there is an EMA."""
    bucket: int
    """The elements of DeepSpeed's buffer of gradients, fp32, where the step is DeepSpeed's."""


def count_state(parameters: int, trained: int, layout: ZeroLayout) -> dict[str, float]:
    """Return the bytes of what lasts from step to step, by part; parameters, trained: the elements
    of all weights, and of those that are trained."""
    share = trained / layout.ranks
    on_device = 0 if layout.offloads else 1
    copies = 2 if layout.stage == 3 else 1
    # at ZeRO 3 DeepSpeed gathers up to 1e9 elements in addition to the partitions
    weights = 1 + 1 / layout.ranks if layout.stage == 3 else 1
    return {
        "weights": weights * parameters * layout.itemsize,
        "optimizer": on_device * (12 + 4 * layout.ema) * share,
        "gradients": _count_gradients(trained, share, layout),
        "evaluation copy": copies * parameters * layout.itemsize,
    }


def _count_gradients(trained: int, share: float, layout: ZeroLayout) -> float:
    """Return the bytes of the fp32 gradients; see `FlatGradients`."""
    if not layout.is_flat:
        return 4 * share + 4 * layout.bucket
    parts = (layout.ranks > 1) + (layout.stage == 2 and layout.micro_steps > 1)
    return 4 * trained + 4 * share * parts


class MemoryPlan(NamedTuple):
    """The memory that a run needs on each device, in bytes by part, with a micro-batch of
    `micro_batch` images."""

    parts: Mapping[str, float]
    micro_batch: int

    @property
    def total(self) -> float:
        """Return the bytes of all parts, with the allocator's reserve."""
        return (1 + RESERVE) * sum(self.parts.values())

    def fits(self, available: float) -> bool:
        """Return True if the plan needs at most the share `NEAR` of so many bytes."""
        return self.total <= NEAR * available

    def describe(self, available: float | None = None) -> str:
        """Return one line: "needs about 41.2 of 79.1 GB a device: activations 38.0, ..."."""
        of = "" if available is None else f" of {available / GB:.1f}"
        named = sorted(self.parts.items(), key=lambda part: -part[1])
        shown = [f"{name} {size / GB:.2f}" for name, size in named if size >= 5e6]
        return f"needs about {self.total / GB:.1f}{of} GB a device: {', '.join(shown)}"


def advise(
    plan: Callable[[int, bool], MemoryPlan],
    now: MemoryPlan,
    forms: Sequence[bool],
    available: float,
) -> str:
    """Return the flags that make a plan fit into so many bytes: the largest micro-batch that
    divides the present one.

    plan: makes the plan of another micro-batch, with or without activation checkpointing. forms:
    whether with or without; the first one is that of `now`.
    """
    ways = []
    for checkpointing in forms:
        size = now.micro_batch
        while size > 2 and not plan(size, checkpointing).fits(available):
            size = _halve(size)
        flags = [f"--micro-batch {size}"] if size < now.micro_batch else []
        flags += ["--grad-checkpointing"] if checkpointing and not forms[0] else []
        if plan(size, checkpointing).fits(available):
            ways.append(" ".join(flags))
    return " or ".join(ways) or "try --zero-stage 3, a smaller model, or smaller images"


def find_largest(
    plan: Callable[[int, bool], MemoryPlan], checkpointing: bool, available: float
) -> int:
    """Return the largest even micro-batch whose plan fits into so many bytes; 0 if none does.

    A plan is linear in a large micro-batch, so two of them give a start; if that does not fit, it
    is lowered by steps that double, and then searched for within the last step by halving.
    """
    few, many = (plan(size, checkpointing).total for size in (128, 256))
    each = (many - few) / 128
    size = max(2, 2 * int((NEAR * available - few + 128 * each) / each / 2))
    back = 2
    while size > 0 and not plan(size, checkpointing).fits(available):
        size -= back
        back *= 2
    size, above = max(0, size), size + back // 2
    while above - size > 2:
        middle = 2 * ((size + above) // 4)
        fits = plan(middle, checkpointing).fits(available)
        size, above = (middle, above) if fits else (size, middle)
    return size


def _halve(size: int) -> int:
    """Return the largest even divisor of an even number below it, 2 at least."""
    return next((size // by for by in range(2, size // 2 + 1) if size % (2 * by) == 0), 2)
