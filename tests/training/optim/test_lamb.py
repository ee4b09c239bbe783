"""LAMB against timm's, for parameters and for flat partitions on one and two processes."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm.optim
import torch

from benchmarks.measuring.counting import StepCounter
from fastdeit.checkpoint.store import load_checkpoint, save_checkpoint
from fastdeit.distributed.world import World, init_distributed
from fastdeit.training.optim.lamb import Lamb, lay_out
from fastdeit.training.zero.flat import ContiguousSlot
from fastdeit.training.zero.partitions import ShardedSlot
from tests.support import lamb_ranks
from tests.support.lamb_ranks import LAMB, SAVED_AT, STEPS, compare
from tests.support.ranks import Ranks
from tests.support.tiny_student import BATCH, configure, make_trainer, plain_loop, run_steps
from tests.support.zero_ranks import AFTER, OWN_FIELDS

VARIANTS = ("1", "2", "3", *OWN_FIELDS, "2 offloaded", "3 offloaded")
SHAPES = [(4, 6), (6,), (3, 2, 2), (5, 1)]


@pytest.fixture(scope="module")
def world() -> World:
    return init_distributed()


@pytest.fixture(scope="module")
def expected() -> tuple[dict[str, torch.Tensor], list[float]]:
    """The weights and losses of timm's Lamb in plain torch."""
    model, _, losses = plain_loop(configure(**LAMB), STEPS)
    return {name: value.detach() for name, value in model.named_parameters()}, losses


@pytest.fixture(scope="module")
def two(
    tmp_path_factory: pytest.TempPathFactory,
    world: World,
    expected: tuple[dict[str, torch.Tensor], list[float]],
) -> dict[str, Any]:
    """What two processes found, from a checkpoint of one."""
    folder = tmp_path_factory.mktemp("lamb")
    trainer = make_trainer(configure(**LAMB, zero_stage=2), world)
    run_steps(trainer, SAVED_AT)
    tensors, state = trainer.state.gather()
    save_checkpoint(folder / "one", state["step"], tensors, state, keep=1)
    torch.save(expected[0], folder / "one.pt")
    both = Ranks(folder / "log", lamb_ranks.main, folder)
    assert both.wait() == 0, both.output
    return json.loads((folder / "two.json").read_text())


def make_groups(shapes: list[tuple[int, ...]]) -> list[dict[str, Any]]:
    random = torch.Generator().manual_seed(1)
    parameters = [torch.randn(shape, generator=random) for shape in shapes]
    parameters[3].zero_()  # its trust ratio is 1 in the first step
    return [
        {"params": [parameters[0], parameters[2], parameters[3]], "weight_decay": 0.1},
        {"params": [parameters[1]], "weight_decay": 0.0},
    ]


def test_parameters_are_updated_as_by_timm() -> None:
    ours, theirs = make_groups(SHAPES), make_groups(SHAPES)
    settings: dict[str, Any] = {"lr": 0.05, "betas": (0.8, 0.99), "eps": 1e-6}
    optimizers = Lamb(ours, **settings), timm.optim.Lamb(theirs, max_grad_norm=None, **settings)
    random = torch.Generator().manual_seed(2)
    for _ in range(6):
        for mine, other in zip(ours, theirs, strict=True):
            for one, two in zip(mine["params"], other["params"], strict=True):
                one.grad = torch.randn(one.shape, generator=random)
                two.grad = one.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine["params"], other["params"], rtol=0, atol=1e-6)


def run_lamb(groups: list[dict[str, Any]], flags: list[float], divisor: float) -> Lamb:
    """Step LAMB once a flag: 1.0 skips a step whose gradient is NaN. Gradients are `divisor` times
    as large as those of a run with 1."""
    optimizer = Lamb(groups, lr=0.05, betas=(0.8, 0.99), eps=1e-6)
    optimizer.grad_scale = torch.tensor(divisor)
    random = torch.Generator().manual_seed(2)
    for flag in flags:
        optimizer.found_inf = torch.tensor(flag)
        for group in groups:
            for tensor in group["params"]:
                if flag:
                    tensor.grad = torch.full_like(tensor, torch.nan)
                else:
                    tensor.grad = divisor * torch.randn(tensor.shape, generator=random)
        optimizer.step()
    return optimizer


@pytest.mark.parametrize("flags", [[1.0, 0.0, 0.0], [0.0, 1.0, 1.0, 0.0]])
def test_skipped_step_changes_nothing(flags: list[float]) -> None:
    groups = make_groups(SHAPES)
    skipping = run_lamb(groups, flags, 1.0)
    expected_groups = make_groups(SHAPES)
    expected = run_lamb(expected_groups, [flag for flag in flags if not flag], 1.0)
    for group, other in zip(groups, expected_groups, strict=True):
        for mine, theirs in zip(group["params"], other["params"], strict=True):
            assert torch.equal(mine, theirs)
            state, expected_state = skipping.state[mine], expected.state[theirs]
            assert all(torch.equal(value, state[name]) for name, value in expected_state.items())


def test_gradients_are_divided_by_the_scale() -> None:
    groups, expected = make_groups(SHAPES), make_groups(SHAPES)
    run_lamb(groups, [0.0] * 3, 8.0)
    run_lamb(expected, [0.0] * 3, 1.0)
    for group, other in zip(groups, expected, strict=True):
        assert all(map(torch.equal, group["params"], other["params"]))


def test_step_reads_no_value_of_the_device() -> None:
    groups = make_groups(SHAPES)
    run_lamb(groups, [0.0], 1.0)
    with StepCounter() as counter:
        run_lamb(groups, [0.0, 1.0], 1.0)
    assert not counter.reads


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_every_element_belongs_to_one_piece_on_one_rank(ranks: int) -> None:
    shapes = [torch.Size(shape) for shape in SHAPES]
    offset, whole, cut, sizes = 0, [], [], 0
    for number, shape in enumerate(shapes):
        whole.append(ContiguousSlot(str(number), shape, offset))
        offset += shape.numel()
        size = -(-shape.numel() // ranks)
        cut.append(ShardedSlot(str(number), shape, sizes, size))
        sizes += size
    for slots, elements in ((whole, -(-(offset + 3) // ranks)), (cut, sizes)):
        parts = torch.zeros(ranks, elements)
        for number, shape in enumerate(shapes):
            slots[number].write(parts, torch.full(shape, number + 1.0))
        counted = torch.zeros(len(shapes))
        for rank, part in enumerate(parts):
            places = [slot.locate(rank, elements) for slot in slots]
            layout = lay_out(places, part)
            counted += layout.sum_squares([part])[0]
            spread = layout.spread(torch.arange(1.0, len(shapes) + 1), elements)
            assert torch.equal(spread, torch.where(part > 0, part, 1.0))
        squares = [shape.numel() * (number + 1) ** 2 for number, shape in enumerate(shapes)]
        assert counted.tolist() == pytest.approx(squares)


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("stage", range(4))
def test_one_process_gives_the_weights_of_timms_lamb(
    stage: int, accumulate: int, world: World, expected: tuple[dict[str, torch.Tensor], list[float]]
) -> None:
    micro = BATCH // accumulate
    trainer = make_trainer(configure(zero_stage=stage, micro_batch=micro, **LAMB), world)
    weights, losses = expected
    assert run_steps(trainer, STEPS, micro) == pytest.approx(losses, rel=1e-5)
    assert compare(trainer.state.weights(), weights) < 1e-6


@pytest.mark.parametrize("clip", [0.05, 100.0])
def test_the_gradients_norm_is_limited_as_in_timm(clip: float, world: World) -> None:
    config = configure(clip_grad=clip, **LAMB)
    model, _, losses = plain_loop(config, 4)
    trainer = make_trainer(config, world)
    assert run_steps(trainer, 4) == pytest.approx(losses, rel=1e-5)
    assert compare(trainer.state.weights(), dict(model.named_parameters())) < 1e-6


def test_without_a_limit_it_is_that_of_timm(world: World) -> None:
    default = make_trainer(configure(**LAMB), world)
    losses = run_steps(default, 4)
    for clip, same in ((1.0, True), (100.0, False)):
        trainer = make_trainer(configure(clip_grad=clip, **LAMB), world)
        assert (run_steps(trainer, 4) == losses) == same


@pytest.mark.parametrize("how", VARIANTS)
def test_two_processes_give_the_weights_of_timms_lamb(
    how: str, two: dict[str, Any], expected: tuple[dict[str, torch.Tensor], list[float]]
) -> None:
    losses, resumed, difference = two[how]
    assert losses == pytest.approx(expected[1], rel=1e-5)
    assert resumed == pytest.approx(expected[1][SAVED_AT : SAVED_AT + AFTER], rel=1e-5)
    assert difference < 1e-6


@pytest.mark.parametrize("stage", [1, 3])
def test_a_resumed_run_is_the_same_bit_for_bit(stage: int, world: World, tmp_path: Path) -> None:
    trainer = make_trainer(configure(zero_stage=stage, **LAMB), world)
    run_steps(trainer, 3)
    tensors, state = trainer.state.gather()
    save_checkpoint(tmp_path, 3, tensors, state, keep=1)
    losses = run_steps(trainer, 3)
    other = make_trainer(configure(zero_stage=stage, **LAMB), world)
    other.state.load(*load_checkpoint(next(tmp_path.iterdir())))
    assert run_steps(other, 3) == losses
    assert compare(other.state.weights(), trainer.state.weights()) == 0
