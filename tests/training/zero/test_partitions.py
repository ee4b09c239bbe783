"""Every ZeRO stage, on one process and on two: losses of plain torch, resume at other stages."""

import json
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

from fastdeit.checkpoint.store import load_checkpoint, save_checkpoint
from fastdeit.distributed.world import World, init_distributed
from fastdeit.training.zero.flat import ContiguousSlot
from fastdeit.training.zero.partitions import ShardedSlot, open_partitions
from tests.support import zero_ranks
from tests.support.ranks import Ranks
from tests.support.tiny_student import (
    BATCH,
    LOSSES,
    STEPS_PER_EPOCH,
    configure,
    deepspeed_steps,
    make_plan,
    make_trainer,
    plain_loop,
    run_steps,
)
from tests.support.zero_ranks import (
    AFTER,
    FULL_LENGTH,
    OWN_FIELDS,
    RESUMED,
    RESUMED_IN_FULL,
    SAVED_AT,
    SHORT,
    STEPS,
    write_variants,
)

STAGES = (1, 2, 3)
VARIANTS = ("1", "2", "3", *OWN_FIELDS, "2 offloaded", "3 offloaded")


@pytest.fixture(scope="module")
def world() -> World:
    return init_distributed()


@pytest.fixture(scope="module")
def expected() -> list[float]:
    return json.loads(LOSSES.read_text())["loss"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def two(folder: Path, world: World) -> dict[str, Any]:
    return save_and_run_ranks(folder, "short", world)


def save_and_run_ranks(folder: Path, form: str, world: World) -> dict[str, Any]:
    """Write a checkpoint of each stage, run two processes that resume from them, and return what
    they found."""
    for stage in STAGES:
        trainer = make_trainer(configure(zero_stage=stage), world)
        run_steps(trainer, SAVED_AT)
        tensors, state = trainer.state.gather()
        save_checkpoint(folder / "one" / str(stage), state["step"], tensors, state, keep=2)
    both = Ranks(folder / "log", zero_ranks.main, folder, form == "full")
    assert both.wait(500) == 0, both.output
    return json.loads((folder / "two.json").read_text())


def test_plain_torch_gives_the_stored_losses(expected: list[float]) -> None:
    assert plain_loop(configure(), STEPS)[2] == pytest.approx(expected, rel=1e-5)
    assert len(expected) == STEPS and expected[-1] < expected[0] - 0.2


def check_one_process(stage: int, accumulate: int, steps: int, world: World) -> None:
    """Assert that the first `steps` losses of a plain form in one process are the stored ones."""
    micro = BATCH // accumulate
    trainer = make_trainer(configure(zero_stage=stage, micro_batch=micro), world)
    stored = json.loads(LOSSES.read_text())["loss"][:steps]
    assert run_steps(trainer, steps, micro) == pytest.approx(stored, rel=1e-5)


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("stage", range(4))
def test_one_process_gives_the_losses_of_plain_torch(
    stage: int, accumulate: int, world: World
) -> None:
    check_one_process(stage, accumulate, SHORT, world)


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("stage", range(4))
def test_one_process_at_full_length(stage: int, accumulate: int, world: World) -> None:
    check_one_process(stage, accumulate, STEPS, world)


@pytest.mark.parametrize("how", VARIANTS)
def test_two_processes_give_the_losses_of_plain_torch(
    how: str, two: dict[str, Any], expected: list[float]
) -> None:
    steps = STEPS if how == FULL_LENGTH else SHORT
    assert two["fp32"][f"{how} x 4"] == pytest.approx(expected[:steps], rel=1e-5)


@pytest.mark.slow
def test_two_processes_at_full_length(tmp_path: Path, world: World, expected: list[float]) -> None:
    found = save_and_run_ranks(tmp_path, "full", world)
    assert len(found["fp32"]) == 14 and len(found["bf16"]) == 14
    for how, losses in found["fp32"].items():
        assert losses == pytest.approx(expected, rel=1e-5), how
    assert len(found["resumed"]) == len(RESUMED_IN_FULL)
    for form, losses in found["resumed"].items():
        assert losses == pytest.approx(expected[SAVED_AT : SAVED_AT + AFTER], rel=1e-5), form
    for how, losses in found["bf16"].items():
        assert losses == pytest.approx(found["bf16"][f"2 x {how[-1]}"], rel=1e-5), how


@pytest.mark.parametrize("stage", [2, 3])
def test_offloaded_optimizer_gives_the_losses_of_plain_torch(
    stage: int, world: World, expected: list[float]
) -> None:
    trainer = make_trainer(configure(zero_stage=stage, offload_optimizer=True), world)
    assert trainer.engine.zero_use_cpu_optimizer()
    assert run_steps(trainer, SHORT) == pytest.approx(expected[:SHORT], rel=1e-5)


def test_sharded_weights_are_evaluated_whole(
    folder: Path, world: World, expected: list[float]
) -> None:
    trainer = make_trainer(configure(**write_variants(folder)["3 in pieces"]), world)
    assert run_steps(trainer, SAVED_AT) == pytest.approx(expected[:SAVED_AT], rel=1e-5)
    assert trainer.state.model.head.weight.numel() == 0
    whole = trainer.state.module()
    weights = trainer.state.weights()
    assert not whole.training and set(weights) == set(whole.state_dict())
    for name, value in whole.state_dict().items():
        assert torch.equal(value, weights[name]), name
    run_steps(trainer, 1)
    trained = trainer.state.module().state_dict()["head.weight"]
    assert not torch.equal(trained, weights["head.weight"])


@pytest.mark.parametrize(
    ("precision", "stage"), [("fp32", 1), ("fp32", 2), ("bf16", 2), ("fp32", 3), ("bf16", 3)]
)
def test_gathered_state_equals_what_deepspeeds_getters_return(
    precision: str, stage: int, world: World
) -> None:
    with deepspeed_steps():  # it links the moments for its getters in its step
        trainer = make_trainer(configure(zero_stage=stage, precision=precision), world)
    run_steps(trainer, 3)
    tensors, _ = trainer.state.gather()
    module = trainer.engine.module
    named = dict(trainer.state.model.named_parameters())
    parameters = list(named.values())
    names = [[name] for name in named]
    if stage < 3:
        parameters = list(module.flats)
        names = [[slot.name for slot in group] for group in module.slots]
    # DeepSpeed 0.19.8 links the moments after the first group's step: at ZeRO 1 and 2 it finds
    # those of the first group alone
    with_moments = set(parameters[:1] if stage < 3 else parameters)
    for parameter, group in zip(parameters, names, strict=True):
        assert_equals_flat(safe_get_full_fp32_param(parameter), tensors["model"], group)
        for moment in ("exp_avg", "exp_avg_sq") if parameter in with_moments else ():
            found = safe_get_full_optimizer_state(parameter, moment)
            assert_equals_flat(found, tensors[moment], group)


def assert_equals_flat(
    flat: torch.Tensor, tensors: dict[str, torch.Tensor], names: list[str]
) -> None:
    expected = torch.cat([tensors[name].flatten() for name in names])
    assert torch.equal(flat.flatten(), expected), names[0]


@pytest.mark.parametrize("how", ["3", *OWN_FIELDS, "2 offloaded", "3 offloaded"])
def test_bf16_stages_agree_and_learn(how: str, two: dict[str, Any]) -> None:
    losses = two["bf16"][f"{how} x 2"]
    assert losses == pytest.approx(two["bf16"]["2 x 2"], rel=1e-5)
    assert losses[-1] < losses[0] - 0.1


@pytest.mark.parametrize("how", VARIANTS)
def test_nan_on_one_rank_skips_the_step_on_both_ranks(how: str, two: dict[str, Any]) -> None:
    found = two["nan"][how]
    assert found["skipped"] and found["untouched"]
    assert all(np.isfinite(found["losses"]))


def test_two_processes_resume_from_a_checkpoint_of_one(
    two: dict[str, Any], expected: list[float]
) -> None:
    assert len(two["resumed"]) == len(RESUMED)
    for form, losses in two["resumed"].items():
        assert losses == pytest.approx(expected[SAVED_AT : SAVED_AT + AFTER], rel=1e-5), form


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("source", ["1", "2", "3", *OWN_FIELDS, "3 offloaded"])
def test_one_process_resumes_from_a_checkpoint_of_two(
    source: str, stage: int, two: dict[str, Any], folder: Path, world: World, expected: list[float]
) -> None:
    trainer = make_trainer(configure(zero_stage=stage), world)
    run_steps(trainer, 1)
    tensors, state = load_checkpoint(folder / "two" / source / f"step-{SAVED_AT:08d}")
    trainer.state.load(tensors, state)
    for stem, named in trainer.state.gather()[0].items():  # weights, moments and EMA, bit for bit
        assert all(torch.equal(value, tensors[stem][name]) for name, value in named.items()), stem
    losses = run_steps(trainer, AFTER)
    assert losses == pytest.approx(expected[SAVED_AT : SAVED_AT + AFTER], rel=1e-5)


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_samples_of_a_step_do_not_depend_on_the_world_size(world_size: int) -> None:
    plan = make_plan()
    for step in range(STEPS_PER_EPOCH):
        ranks = [plan.ordinals(step, BATCH, rank, world_size) for rank in range(world_size)]
        assert {len(rank) for rank in ranks} == {BATCH // world_size}
        assert sorted(np.concatenate(ranks)) == list(range(step * BATCH, (step + 1) * BATCH))


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("shape", [(5,), (3, 7), (2, 4, 3), (1,)])
def test_parameter_is_read_back_from_all_ranks_parts(ranks: int, shape: tuple[int, ...]) -> None:
    value = torch.randn(shape)
    size = -(-value.numel() // ranks)
    for slot, elements in (
        (ContiguousSlot("w", value.shape, 3), value.numel() + 5),
        (ShardedSlot("w", value.shape, 3, size), size + 5),
    ):
        parts = torch.full((ranks, elements), torch.nan)
        slot.write(parts, value)
        assert torch.equal(slot.read(parts), value)
        written = size * ranks if isinstance(slot, ShardedSlot) else value.numel()
        assert parts.isnan().sum() == ranks * elements - written


def test_deepspeed_without_a_needed_attribute_fails() -> None:
    for stage, lacks in ((2, "update_lp_params"), (3, "checkpoint_event_epilogue")):
        engine = types.SimpleNamespace(
            optimizer=object(),
            device=torch.device("cpu"),
            zero_optimization_stage=lambda stage=stage: stage,
        )
        message = f"not supported: its ZeRO optimizer has no .*{lacks}"
        with pytest.raises(RuntimeError, match=message):
            open_partitions(engine)
