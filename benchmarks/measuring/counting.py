"""Counters of what a step requests from its device: launches, copies, reads, synchronisations.

They count calls in torch's dispatcher, on any device, so a CPU shows the requests that a GPU would
have. The backward is included: the threads of the autograd engine inherit the dispatch mode of the
thread that calls it. One call is counted as one of

  launches          every operator that returns or changes a tensor, except views, allocations and
                    reads. A `_foreach` operator, an operator of fastdeit and a collective are one
                    each, whatever the number of their kernels is
  reads             operators whose result the host waits for: `.item()`, `bool()` and `float()` of
                    a tensor (`_local_scalar_dense`), `equal`, and those with an output of unknown
                    size (`nonzero`, `unique`, an index that is a mask)
  copies            `copy_` and `_to_copy` between the host and a device; they are launches, too
  synchronisations  `synchronize` of torch.cuda, of its streams and events, and of DeepSpeed's
                    accelerator, each call once

Not counted: the launches of a compiled graph, and what torch does below the dispatcher
(`torch.tensor(..., device=)`). On a GPU `kernel_spans` and `count_waits` include these, too.
"""

import functools
import gc
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from fastdeit.distributed.world import import_deepspeed

aten = torch.ops.aten
ALLOCATIONS = {
    aten.empty,
    aten.empty_like,
    aten.empty_strided,
    aten.new_empty,
    aten.new_empty_strided,
    aten.resize_,
    aten.set_,
}
NO_LAUNCH = ALLOCATIONS | {aten._unsafe_view, aten.record_stream}
"""The operators that launch nothing, although their schema does not show that."""
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}
UNKNOWN = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
COPIES = {aten.copy_, aten._to_copy}


class Place(NamedTuple):
    """A line of source that made a request."""

    module: str
    line: int
    function: str


class StepCounter(TorchDispatchMode):
    """A counter of the requests between its `__enter__` and `__exit__`; counters may be nested."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: Counter[str] = Counter()
        """The launches by operator."""
        self.copies = 0
        self.reads: Counter[Place] = Counter()
        self.synchronisations: Counter[Place] = Counter()

    @property
    def launches(self) -> int:
        return self.operators.total()

    @property
    def waits(self) -> int:
        return self.reads.total() + self.synchronisations.total()

    def __enter__(self) -> "StepCounter":
        self._patches = ExitStack()
        self._patches.enter_context(count_synchronisations(self.synchronisations))
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._patches.close()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if is_read(func, args, kwargs):
            self.reads[_caller()] += 1
        elif _is_launch(func):
            self.operators[str(func)] += 1
            self.copies += func.overloadpacket in COPIES and crosses(args, kwargs)
        return func(*args, **kwargs)


@contextmanager
def count_synchronisations(counts: "Counter[Place]") -> Iterator[None]:
    """Add each call of a `synchronize` to `counts`, by the place of the call.

    Meanwhile no garbage is collected: DeepSpeed's engine, if it was part of a cycle, synchronises
    when it is.
    """

    def counting(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            counts[_caller()] += 1
            return function(*args, **kwargs)

        return call

    owners = (torch.cuda, torch.cuda.Stream, torch.cuda.Event, *_other_accelerators())
    with ExitStack() as patches:
        if gc.isenabled():
            patches.callback(gc.enable)
            gc.disable()
        for owner in owners:
            replacement = counting(owner.synchronize)
            patches.enter_context(mock.patch.object(owner, "synchronize", replacement))
        yield


def count_waits(step: Callable[[], object]) -> int:
    """Return the number of a step's operators that wait for the GPU, and of `synchronize` calls."""
    calls: Counter[Place] = Counter()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught, count_synchronisations(calls):
            warnings.simplefilter("always")
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    messages = [str(warning.message) for warning in caught]
    return calls.total() + sum("synchronizing CUDA operation" in text for text in messages)


def kernel_spans(step: Callable[[], object], steps: int) -> list[tuple[float, float]]:
    """Return start and end of every kernel, copy and fill of some steps on a GPU, in µs."""
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(steps):
            step()
        torch.cuda.synchronize()
    events: Any = profiler.events()
    spans = []
    for event in events:
        if event.device_type.name == "CUDA" and not event.is_user_annotation:
            spans.append((event.time_range.start, event.time_range.end))
    return spans


def uncovered_pct(spans: Iterable[tuple[float, float]]) -> float:
    """Return the percentage of the time from the first start to the last end that no span covers.

    spans: (start, end), at least one.
    """
    ordered = sorted(spans)
    first = reached = ordered[0][0]
    gaps = 0.0
    for start, end in ordered:
        gaps += max(0.0, start - reached)
        reached = max(reached, end)
    return 100 * gaps / (reached - first)


def _other_accelerators() -> list[Any]:
    """Return DeepSpeed's accelerator, unless its `synchronize` is torch.cuda's."""
    import_deepspeed()
    from deepspeed.accelerator import get_accelerator

    accelerator = get_accelerator()
    return [] if accelerator.device_name() == "cuda" else [accelerator]


def is_read(func: Any, args: Any, kwargs: Any) -> bool:
    """Return True if the host waits for the result of an operator."""
    if func.overloadpacket in INDEXING:
        dtypes = [index.dtype for index in args[1] if index is not None]
        return torch.bool in dtypes or torch.uint8 in dtypes
    if func.overloadpacket is aten.repeat_interleave and kwargs.get("output_size") is not None:
        return False
    return not UNKNOWN.isdisjoint(func.tags)


@functools.cache
def _is_launch(func: Any) -> bool:
    touches = func._schema.is_mutable or any(
        "Tensor" in str(value.type) for value in func._schema.returns
    )
    return touches and not func.is_view and func.overloadpacket not in NO_LAUNCH


def crosses(args: Any, kwargs: Any) -> bool:
    """Return True if a copy is between the host and a device."""
    devices = [value.device for value in args if isinstance(value, torch.Tensor)]
    if kwargs.get("device") is not None:
        devices.append(torch.device(kwargs["device"]))
    return len({device.type == "cpu" for device in devices}) == 2


def _caller() -> Place:
    """Return the innermost place outside torch and this file."""
    inside = ("torch.", f"{__name__}.")
    frame = sys._getframe(2)
    while frame.f_back and f"{frame.f_globals['__name__']}.".startswith(inside):
        frame = frame.f_back
    return Place(frame.f_globals["__name__"], frame.f_lineno, frame.f_code.co_name)
