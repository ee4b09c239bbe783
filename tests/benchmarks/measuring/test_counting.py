"""`benchmarks.measuring.counting`: which operators, copies, reads and synchronisations are counted.

.venv/bin/python -m pytest tests/benchmarks/measuring/test_counting.py, about 4 s
"""

import gc
import warnings

import pytest
import torch
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity
from torch.utils.checkpoint import checkpoint

from benchmarks.measuring import counting
from benchmarks.measuring.counting import (
    StepCounter,
    count_synchronisations,
    count_waits,
    kernel_spans,
    uncovered_pct,
)
from fastdeit.distributed.world import import_deepspeed


def test_views_and_allocations_are_no_launches() -> None:
    x = torch.ones(4, 6)
    with StepCounter() as counter:
        parts = [*x.view(2, 12).unbind(0), *x.split(2), x.t(), x[1:, ::2], x.detach()]
        parts += [x.expand(3, 4, 6), x.unflatten(1, (2, 3))]
        torch.empty(3), torch.empty_like(x), x.new_empty(2)
    assert len(parts) == 9 and counter.launches == counter.waits == 0


def test_computing_operators_are_launches_in_both_passes() -> None:
    x = torch.ones(3, requires_grad=True)
    with StepCounter() as forward:
        y = (x * 2).sum()
    with StepCounter() as backward:
        y.backward()
    assert forward.operators == {"aten.mul.Tensor": 1, "aten.sum.default": 1}
    assert backward.operators == {"aten.ones_like.default": 1, "aten.mul.Tensor": 1}


def test_recomputation_inside_backward_is_counted() -> None:
    x = torch.ones(3, requires_grad=True)
    y = checkpoint(lambda x: x.exp().sin(), x, use_reentrant=True).sum()  # type: ignore[union-attr]
    with StepCounter() as counter:
        y.backward()
    assert counter.operators["aten.exp.default"] == counter.operators["aten.cos.default"] == 1


def test_foreach_operator_is_one_launch() -> None:
    tensors = [torch.ones(3) for _ in range(5)]
    with StepCounter() as counter:
        torch._foreach_lerp_(tensors, [torch.zeros(3)] * 5, 0.5)
    assert counter.operators == {"aten.zeros.default": 1, "aten._foreach_lerp_.Scalar": 1}


def test_operators_whose_result_the_host_needs_are_reads() -> None:
    x = torch.ones(3)
    mask = torch.tensor([True, False, True])
    indices = torch.tensor([0, 2])
    with StepCounter() as counter:
        x[0].item(), float(x[0]), torch.equal(x, x), mask.nonzero(), x[mask]
        assert x.sum() > 2
        x[indices]  # noqa: B018  # the size of the result is known, so the host need not wait
    assert counter.reads.total() == 6
    assert {place.module for place in counter.reads} == {__name__}
    this_test = "test_operators_whose_result_the_host_needs_are_reads"
    assert {place.function for place in counter.reads} == {this_test}


def test_only_copies_between_host_and_device_are_counted() -> None:
    x = torch.ones(3)
    with StepCounter() as counter:
        on_device = x.to("meta")  # a stand-in for a real device
        on_device.copy_(x)
        x.to(torch.bfloat16), x.clone(), torch.ones(3).copy_(x)
    assert counter.copies == 2


def test_each_synchronize_is_counted_once() -> None:
    import_deepspeed()
    from deepspeed.accelerator import get_accelerator

    with StepCounter() as outer:
        get_accelerator().synchronize()
        with StepCounter() as inner:
            get_accelerator().synchronize()
    get_accelerator().synchronize()
    assert outer.waits == outer.synchronisations.total() == 2
    assert inner.synchronisations.total() == 1
    functions = {place.function for place in outer.synchronisations}
    assert functions == {"test_each_synchronize_is_counted_once"}


def test_counters_may_be_nested() -> None:
    x = torch.ones(3)
    with StepCounter() as outer:
        x + 1  # noqa: B018
        with StepCounter() as inner:
            x * 2  # noqa: B018
    assert (outer.launches, inner.launches) == (2, 1)


def test_waits_on_a_gpu_are_warnings_and_synchronize_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[str] = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)

    # the warning of torch
    synchronizing = "called a synchronizing CUDA operation (Triggered internally at F.cpp:91.)"

    def step() -> None:
        for _ in range(2):
            warnings.warn(synchronizing, stacklevel=1)
        warnings.warn("something else", stacklevel=1)
        torch.cuda.synchronize()

    assert count_waits(step) == 3 and modes == ["warn", "default"]


class Profile:
    """A stand-in for torch's profiler on a GPU.

    Its events are a kernel, a copy, the launch of one, and a range over all.
    """

    def __init__(self, activities: list[ProfilerActivity]) -> None:
        assert activities == [ProfilerActivity.CUDA]

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def events(self) -> list[FunctionEvent]:
        def event(
            name: str, start: int, end: int, device: DeviceType = DeviceType.CUDA
        ) -> FunctionEvent:
            is_range = name == "Optimizer.step"
            return FunctionEvent(
                1, name, 1, start, end, device_type=device, is_user_annotation=is_range
            )

        return [
            event("kernel", 5, 9),
            event("Memcpy", 1, 2),
            event("launch", 0, 1, DeviceType.CPU),
            event("Optimizer.step", 0, 9),
        ]


def test_kernel_spans_contain_kernels_and_copies_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(counting, "profile", Profile)
    steps: list[int] = []
    spans = kernel_spans(lambda: steps.append(1), 3)
    assert sorted(spans) == [(1, 2), (5, 9)]
    assert len(steps) == 3


@pytest.mark.parametrize(
    ("spans", "pct"),
    [
        ([(0, 10)], 0),
        ([(5, 10), (0, 5)], 0),
        ([(0, 2), (4, 10)], 20),
        ([(0, 8), (1, 2), (9, 10)], 10),
        ([(0, 1), (9, 10)], 80),
    ],
)
def test_uncovered_pct_is_the_share_without_a_kernel(
    spans: list[tuple[float, float]], pct: float
) -> None:
    assert uncovered_pct(spans) == pytest.approx(pct)


def test_synchronize_is_restored_after_counting() -> None:
    before = torch.cuda.synchronize, torch.cuda.Event.synchronize
    with count_synchronisations(StepCounter().synchronisations):
        assert torch.cuda.synchronize is not before[0]
    assert (torch.cuda.synchronize, torch.cuda.Event.synchronize) == before


class Engine:
    """An object of a cycle that synchronises when it is collected, as DeepSpeed's engine."""

    def __init__(self) -> None:
        self.cycle = self

    def __del__(self) -> None:
        from deepspeed.accelerator import get_accelerator

        get_accelerator().synchronize()


def test_an_engine_that_is_garbage_is_not_counted() -> None:
    import_deepspeed()
    thresholds = gc.get_threshold()
    gc.set_threshold(10)
    try:
        with StepCounter() as counter, StepCounter():
            Engine()
            kept = [[number] for number in range(1000)]  # would start collections
    finally:
        gc.set_threshold(*thresholds)
    assert len(kept) == 1000 and not counter.synchronisations
    assert gc.isenabled()
