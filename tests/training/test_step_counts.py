"""Ceilings for an optimizer step: launches, reads and synchronisations of its device.

Counted on the CPU (benchmarks/measuring/counting.py), where forward and backward are operators of
plain torch; the fused kernels, in the interpreter, are counted in a form of their own. Lower a
ceiling with the change that makes it possible; raise one only with its reason.
"""

import functools
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch

from benchmarks.bench_counts import (
    FORMS,
    WARM_UP,
    Counts,
    Form,
    count_step,
    device_reads,
    row_of,
)
from benchmarks.measuring.counting import StepCounter
from benchmarks.measuring.trainers import TOY, make_batch, make_config, make_trainer, micro_batches
from fastdeit.distributed.world import World, init_distributed
from fastdeit.run.loop import train_step
from fastdeit.run.state import Progress
from fastdeit.training.trainer import Trainer


class Ceiling(NamedTuple):
    launches: int
    step_launches: int
    """Of them the update's: gradients to weights."""
    reads: int = 0
    synchronisations: int = 0


CEILINGS = {
    Form("bf16", 2): Ceiling(660, 15),
    Form("bf16", 2, clip_grad=1.0): Ceiling(660, 18),
    Form("bf16", 2, accumulate=2): Ceiling(1290, 15),
    Form("fp32", 1): Ceiling(510, 15),
    Form("fp32", 1, clip_grad=1.0): Ceiling(510, 18),
    Form("fp32", 1, accumulate=2): Ceiling(990, 15),
    # every rank holds a piece of each of the 143 parameters; DeepSpeed checks the norm
    Form("bf16", 3): Ceiling(1280, 340, 1),
    Form("bf16", 3, clip_grad=1.0): Ceiling(1290, 350, 1),
    Form("bf16", 3, accumulate=2): Ceiling(2210, 340, 1),
}
FUSED = (20, 70)
"""Operators of a block with fused kernels (12 products, 8 of ours), and of the rest of a step."""


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
def test_steps_of_the_loop_wait_for_nothing_but_deepspeeds_check(
    precision: str, stage: int, world: World
) -> None:
    """The host reads no value of the device and does not synchronise in two steps of the loop and
    between them, except at ZeRO 3, where DeepSpeed (0.19.8, runtime/utils.py:233) asks whether the
    norm is finite, and with clipping once more for each group."""
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
        assert train_step(run, iter(batches)) and train_step(run, iter(batches))
    assert trainer.applied and len(run.progress.meter.read()) == 2
    found = {(place.module, place.function) for place in device_reads(counter)}
    allowed = {("deepspeed.runtime.utils", "is_invalid_grad_norm")} if stage == 3 else set()
    assert found == allowed
    assert not counter.synchronisations and counter.copies == 0


def test_fused_step_stays_under_its_ceiling(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of a block's launches does not depend on its sizes."""
    launches = []
    for depth in (1, 2):
        monkeypatch.setitem(TOY, "depth", depth)
        config = make_config("toy", 2, kernels="triton", precision="bf16", clip_grad=1.0)
        trainer = make_trainer(config, world)
        batch = make_batch(2, world.device, config.data.input_size, depth)
        with StepCounter() as counter:
            trainer.train_step([batch])
        assert not counter.waits
        launches.append(counter.launches)
    block = launches[1] - launches[0]
    assert block <= FUSED[0] and launches[0] - block <= FUSED[1], launches


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
