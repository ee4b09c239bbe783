"""Ceilings for an optimizer step: launches, reads and synchronisations of its device.

Counted on the CPU (benchmarks/counting.py), where forward and backward are operators of plain
torch, of which our kernels need fewer on a GPU. Lower a ceiling with the change that makes it
possible; raise one only with its reason.
"""

import functools
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch

from benchmarks.bench_counts import FORMS, WARM_UP, Counts, Form, count_step, row_of
from benchmarks.counting import StepCounter
from benchmarks.trainers import make_config, make_trainer, micro_batches
from fastdeit.distributed.world import World, init_distributed
from fastdeit.run.loop import train_step
from fastdeit.run.state import Progress
from fastdeit.training.trainer import Trainer


class Ceiling(NamedTuple):
    launches: int
    step_launches: int
    """Of them DeepSpeed's `step()`."""
    reads: int
    synchronisations: int = 0


CEILINGS = {
    Form("bf16", 2): Ceiling(820, 100, 4),
    Form("bf16", 2, clip_grad=1.0): Ceiling(850, 130, 6),
    Form("bf16", 2, accumulate=2): Ceiling(1540, 100, 4),
    Form("fp32", 1): Ceiling(610, 70, 3),
    Form("fp32", 1, clip_grad=1.0): Ceiling(640, 100, 5),
    Form("fp32", 1, accumulate=2): Ceiling(1140, 70, 3),
    # every rank holds a piece of each of the 143 parameters
    Form("bf16", 3): Ceiling(1360, 360, 3),
    Form("bf16", 3, clip_grad=1.0): Ceiling(1380, 380, 3),
    Form("bf16", 3, accumulate=2): Ceiling(2360, 360, 3),
}
DEEPSPEED_READS = {
    ("deepspeed.runtime.zero.stage_1_and_2", "has_overflow"),
    ("deepspeed.runtime.utils", "is_invalid_grad_norm"),
    ("deepspeed.runtime.zero.stage_1_and_2", "_optimizer_step"),
    ("deepspeed.runtime.zero.stage3", "step_with_gradscaler"),
}


@pytest.fixture(scope="module")
def world() -> World:
    return init_distributed()


@functools.cache
def counted(form: Form) -> Counts:
    return count_step(form, init_distributed())


@pytest.mark.parametrize("form", FORMS, ids=lambda form: "-".join(map(str, form)))
def test_step_stays_under_its_ceiling(form: Form) -> None:
    ceiling = CEILINGS[form]._asdict()
    found = row_of(form, counted(form))
    above = {
        name: f"{found[name]}, allowed {most}"
        for name, most in ceiling.items()
        if float(found[name]) > most
    }
    assert not above, f"{above}; operators: {counted(form).whole.operators.most_common(12)}"


@pytest.mark.parametrize(("precision", "stage"), [("bf16", 2), ("fp32", 1), ("bf16", 3)])
def test_step_waits_only_in_deepspeeds_checks(precision: str, stage: int, world: World) -> None:
    """Our code reads no value of the device and does not synchronise, in two steps of the loop and
    between them.

    The reads that remain are DeepSpeed's (0.19.8), which an update may change:

    - zero/stage_1_and_2.py:3248 has_overflow: is a gradient not finite (bf16 only)
    - runtime/utils.py:233 is_invalid_grad_norm: is the norm not finite; with clipping once more for
      each group
    - zero/stage_1_and_2.py:2983 _optimizer_step, zero/stage3.py:1245 step_with_gradscaler: torch's
      AdamW reads its step, once a group; on the CPU only, the fused form of a GPU does not
    """
    trainer, batches = ready(world, precision=precision, zero_stage=stage, clip_grad=1.0)
    run: Any = SimpleNamespace(
        trainer=trainer,
        data=SimpleNamespace(quarantine=SimpleNamespace()),
        supervisor=SimpleNamespace(timed=lambda section, step, micro_batches: micro_batches),
        progress=Progress(),
        health=SimpleNamespace(bad=[]),
        config=make_config("toy", 2),
    )
    with StepCounter() as counter:
        assert train_step(run, batches) and train_step(run, batches)
    assert trainer.applied and len(run.progress.meter.read()) == 2
    assert {(place.module, place.function) for place in counter.reads} <= DEEPSPEED_READS
    assert not counter.synchronisations and counter.copies == 0


def test_counter_finds_a_read_in_the_criterion(world: World) -> None:
    trainer, batches = ready(world, precision="fp32")
    criterion = trainer.criterion

    def reading(*args: Any) -> Any:
        parts = criterion(*args)
        assert parts.loss > 0  # as a check for NaN would be
        return parts

    trainer.criterion = reading  # type: ignore[assignment]
    with StepCounter() as counter:
        trainer.train_step(batches)
    assert sum(place == (__name__, place.line, "reading") for place in counter.reads) == 1


def ready(world: World, **changes: Any) -> tuple[Trainer, Any]:
    """Return a trainer after its first steps, in which ZeRO 3 compares its records over ranks, and
    the batches of a step."""
    config = make_config("toy", 2, **changes)
    trainer = make_trainer(config, world)
    batches = micro_batches(config, torch.device("cpu"))
    for _ in range(WARM_UP):
        trainer.train_step(batches)
    return trainer, batches
