"""The time of a step: it is that of all its micro-steps."""

import pytest

from fastdeit.estimate.gpus import GPUS
from fastdeit.estimate.lines import Span
from fastdeit.estimate.step import StepTime, Work, time_cpu_step, time_gpu_step, time_teacher
from fastdeit.training.zero.links import Links

GPU = GPUS["h100"]
WHOLE = Work("", None, 6e9, 4e9, 6e6, 128, 1, 1, checkpoints=False, overlaps=False)


def list_values(step: StepTime) -> dict[str, float | None]:
    return {line.name: line.value for line in step.lines}


def test_teacher_and_model_take_as_long_in_smaller_micro_batches() -> None:
    parts = WHOLE._replace(micro_batch=32, micro_steps=4)
    whole, smaller = (time_gpu_step(work, GPU, 8, Links(8)) for work in (WHOLE, parts))
    assert list_values(smaller) == pytest.approx(list_values(whole))
    assert time_teacher(parts, GPU) == pytest.approx(time_teacher(WHOLE, GPU))
    # FLOPs at 15 % of 989 TFLOP/s
    teacher = list_values(whole)["the live teacher, a step"]
    assert teacher == pytest.approx(4e9 * 128 / (0.15 * GPU.tflops * 1e12) * 1e3)


def test_recomputing_adds_a_third_to_the_model_and_nothing_to_the_teacher() -> None:
    again = WHOLE._replace(checkpoints=True)
    usual, more = (list_values(time_gpu_step(work, GPU, 1, Links(8))) for work in (WHOLE, again))
    name = "the model, a step"
    assert more.pop(name) == pytest.approx(4 / 3 * (usual.pop(name) or 0))
    assert more["the live teacher, a step"] == usual["the live teacher, a step"]


def test_a_cpu_step_has_the_arithmetic_and_the_loader_of_all_samples() -> None:
    parts = WHOLE._replace(micro_batch=32, micro_steps=4)
    whole, smaller = (
        list_values(time_cpu_step(work, Span(2.0, 1.0, 3.0))) for work in (WHOLE, parts)
    )
    assert whole["the loader, a step"] == smaller["the loader, a step"] == 2.0 * 128
    name = "arithmetic, a step"
    assert smaller[name] == pytest.approx(whole[name])
    name = "launches, a step"
    assert smaller[name] == pytest.approx(4 * (whole[name] or 0))
