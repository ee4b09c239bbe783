"""Our update against DeepSpeed's: weights, moments, norms; and what it leaves alone."""

import json
from typing import Any

import pytest
import torch

from fastdeit.distributed.world import World, init_distributed
from fastdeit.training.trainer import Trainer
from fastdeit.training.zero.flat_update import FlatUpdate
from tests.support import update_ranks
from tests.support.ranks import Ranks
from tests.support.tiny_student import BATCH, configure, make_batch, make_trainer, part, run_steps
from tests.support.update_ranks import (
    FORMS,
    OVERLAPPED,
    Difference,
    Form,
    Overlap,
    compare_updates,
    move,
)


@pytest.fixture(scope="module")
def world() -> World:
    return init_distributed()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("update")
    both = Ranks(folder / "log", update_ranks.main, folder)
    assert both.wait() == 0, both.output
    return json.loads((folder / "two.json").read_text())


def check(form: Form, found: Difference) -> None:
    """Assert bits without clipping; a divisor in place of DeepSpeed's factor rounds otherwise."""
    if form.clip_grad is None:
        assert found.equal and found[:3] == (0, 0, 0)
        return
    tolerance = 1e-6 if form.precision == "fp32" else 1e-4
    assert found.statistics < tolerance
    assert found.weights < tolerance / 10 and found.moments < tolerance


@pytest.mark.parametrize("form", FORMS, ids=lambda form: "-".join(map(str, form)))
def test_two_processes_train_as_with_deepspeeds_step(form: Form, two: dict[str, Any]) -> None:
    check(form, Difference(**two[str(FORMS.index(form))]))


@pytest.mark.parametrize("number", range(len(OVERLAPPED)))
def test_reduction_during_the_backward_pass_gives_the_same_bits(
    number: int, two: dict[str, Any]
) -> None:
    found = Overlap(**two["overlap"][number])
    assert found.equal and 0 < found.early < found.all


@pytest.mark.parametrize("form", FORMS[1::2], ids=lambda form: "-".join(map(str, form)))
def test_one_process_trains_as_with_deepspeeds_step(form: Form, world: World) -> None:
    check(form, compare_updates(form, world))


@pytest.mark.gpu
@pytest.mark.parametrize("form", FORMS, ids=lambda form: "-".join(map(str, form)))
def test_gpu_trains_as_with_deepspeeds_step(form: Form, world: World) -> None:
    """Sums of a GPU may differ from run to run; a missing or a doubled part of a gradient shows."""
    assert world.device.type == "cuda"
    found = compare_updates(form, world)
    assert found.statistics < (1e-4 if form.precision == "fp32" else 1e-2)
    assert found.weights < 1e-3 and found.moments < 1e-2


@pytest.mark.gpu
def test_gpu_steps_do_not_synchronise(world: World) -> None:
    trainer = make_trainer(configure(precision="bf16", clip_grad=1.0), world)
    batch = move(make_batch(0), world.device)
    trainer.train_step([batch])
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            trainer.train_step([batch])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert trainer.applied


def flats_of(trainer: Trainer) -> dict[str, list[torch.Tensor]]:
    """Return all tensors that a CUDA graph of a step would refer to."""
    update, state = trainer.update, trainer.state
    assert isinstance(update, FlatUpdate) and state.ema is not None
    moments = [*state.partitions.optimizer.state.values()]
    return {
        "gradients": [*update.gradients.parts, *update.gradients.wholes],
        "masters": state.partitions.masters,
        "weights": [*state.model.parameters()],
        "moments": [one for each in moments for one in each.values()],
        "ema": state.ema.flats,
        "decisions": [update.skipped, update.grad_norm, update._rates.values],
    }


def addresses_of(trainer: Trainer) -> dict[str, list[int]]:
    return {name: [flat.data_ptr() for flat in flats] for name, flats in flats_of(trainer).items()}


@pytest.mark.parametrize(("stage", "micro"), [(1, BATCH), (2, 4)])
def test_memory_of_a_step_stays_the_same_also_over_a_restore(
    stage: int, micro: int, world: World
) -> None:
    trainer = make_trainer(configure(zero_stage=stage, micro_batch=micro, clip_grad=1.0), world)
    before = addresses_of(trainer)
    run_steps(trainer, 2, micro)
    tensors, values = trainer.state.gather()
    trainer.state.load(tensors, values)
    run_steps(trainer, 1, micro)
    assert addresses_of(trainer) == before


def test_deepspeeds_hooks_and_buckets_are_not_used(world: World) -> None:
    trainer = make_trainer(configure(precision="bf16"), world)
    run_steps(trainer, 2)
    zero = trainer.engine.optimizer
    assert all(flat.grad is None for flat in trainer.engine.module.flats)
    assert all(not bucket.buffer for bucket in zero.ipg_buckets.values())
    assert zero.grads_in_partition is None and not any(zero.averaged_gradients.values())


def test_restored_state_of_step_zero_trains_as_a_new_one(world: World) -> None:
    first, second = (make_trainer(configure(), world) for _ in range(2))
    new = first.state.gather()
    run_steps(second, 2)
    second.state.load(*new)
    assert run_steps(second, 3) == run_steps(first, 3)


def test_a_skipped_step_after_a_clipped_one_leaves_the_counts(world: World) -> None:
    trainer = make_trainer(configure(clip_grad=0.1, micro_batch=8), world)
    run_steps(trainer, 1, 8)
    batch = make_batch(1)
    batch.images[9] = torch.nan
    values = trainer.train_step(part(batch, at, 8) for at in (0, 8))
    assert values[0].isnan() and values[3].isinf() and not trainer.applied
    run_steps(trainer, 1, 8)
    assert (trainer.state.skipped, trainer.state.gather()[1]["adam_step"]) == (1, 2)
