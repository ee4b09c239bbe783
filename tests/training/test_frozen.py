"""Frozen weights at every ZeRO stage: losses of plain torch that freezes the same, whole weights in
checkpoints and EMA, and no optimizer state."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from fastdeit.checkpoint.store import load_checkpoint
from fastdeit.distributed.world import World, init_distributed
from fastdeit.models.finetune.trainable import count_parameters, freeze_weights
from fastdeit.training import build
from fastdeit.training.trainer import Trainer
from tests.support import frozen_ranks
from tests.support.frozen_ranks import AFTER, SAVED_AT, STAGES
from tests.support.ranks import Ranks
from tests.support.tiny_student import (
    CLASSES,
    STEPS_PER_EPOCH,
    assert_near,
    configure,
    make_model,
    make_trainer,
    plain_loop,
    run_steps,
)

STEPS = SAVED_AT + AFTER
KINDS = ("attention", "heads")
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def world() -> World:
    return init_distributed()


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    return {kind: plain_loop(configure(trainable=kind), STEPS) for kind in KINDS}


def frozen_of(kind: str) -> Tensors:
    named = make_model(kind).named_parameters()
    return {name: weight.detach() for name, weight in named if not weight.requires_grad}


def count_moments(trainer: Trainer) -> int:
    """Return the elements of the first moments that this rank's optimizer holds."""
    states = trainer.engine.optimizer.optimizer.state.values()
    return sum(state["exp_avg"].numel() for state in states)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_weights_are_those_of_plain_torch(
    kind: str, stage: int, world: World, expected: dict[str, Any]
) -> None:
    trainer = make_trainer(configure(trainable=kind, zero_stage=stage), world)
    model, ema, losses = expected[kind]
    assert run_steps(trainer, STEPS) == pytest.approx(losses, rel=1e-5)
    assert losses[-1] != losses[0]
    found = trainer.state.weights()
    assert_near(found, dict(model.state_dict()))
    averaged = trainer.state.ema_weights()
    assert averaged is not None
    assert_near(averaged, ema)
    for name, value in frozen_of(kind).items():
        assert torch.equal(found[name], value) and torch.equal(averaged[name], value), name


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_optimizer_has_no_state_of_frozen_weights(kind: str, stage: int, world: World) -> None:
    trainer = make_trainer(configure(trainable=kind, zero_stage=stage), world)
    run_steps(trainer, 1)
    whole, trained = count_parameters(make_model(kind))
    held = sum(flat.numel() for flat in trainer.state.partitions.masters)
    # DeepSpeed pads each group
    assert trained <= count_moments(trainer) == held < trained + 16 < whole
    tensors, _ = trainer.state.gather()
    layout = trainer.state.layout()
    assert {stem: set(named) for stem, named in tensors.items()} == {
        stem: set(named) for stem, named in layout.items()
    }
    assert not frozen_of(kind).keys() & tensors["exp_avg"].keys()


@pytest.mark.parametrize("stage", [2, 3])
def test_in_bf16_the_files_get_frozen_weights_that_are_not_rounded(
    stage: int, world: World
) -> None:
    trainer = make_trainer(configure(trainable="heads", zero_stage=stage, precision="bf16"), world)
    run_steps(trainer, 2)
    weights = trainer.state.weights()
    for name, value in frozen_of("heads").items():
        assert torch.equal(weights[name], value), name
    whole = trainer.state.module().state_dict()
    assert torch.equal(whole["pos_embed"], weights["pos_embed"].bfloat16())
    assert not torch.equal(whole["pos_embed"].float(), weights["pos_embed"])


@pytest.mark.parametrize("stage", STAGES)
def test_a_checkpoint_sets_the_frozen_weights(stage: int, world: World) -> None:
    """As that of another run, given as --resume."""
    source = make_trainer(configure(trainable="heads", zero_stage=1), world)
    run_steps(source, 2)
    tensors, values = source.state.gather()
    tensors["model"]["norm.weight"] = tensors["model"]["norm.weight"] * 2
    trainer = make_trainer(configure(trainable="heads", zero_stage=stage), world)
    trainer.state.load(tensors, values)
    for stem, named in trainer.state.gather()[0].items():
        assert all(torch.equal(value, tensors[stem][name]) for name, value in named.items()), stem
    other = make_trainer(configure(trainable="heads", zero_stage=stage), world)
    other.state.load(*source.state.gather())
    images = torch.randn(2, 3, 32, 32)
    doubled, plain = trainer.state.module()(images), other.state.module()(images)
    assert not torch.allclose(doubled, plain)
    assert run_steps(trainer, 1) != run_steps(other, 1)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    both = Ranks(folder / "log", frozen_ranks.main, folder)
    assert both.wait() == 0, both.output
    return folder, json.loads((folder / "two.json").read_text())


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_give_the_losses_of_plain_torch(
    kind: str,
    stage: int,
    two: tuple[Path, dict[str, Any]],
    expected: dict[str, Any],
) -> None:
    losses = two[1][f"{kind} {stage}"]
    assert losses == pytest.approx(expected[kind][2], rel=1e-5)


@pytest.mark.parametrize("source", STAGES)
@pytest.mark.parametrize("stage", STAGES)
def test_one_process_resumes_from_a_checkpoint_of_two(
    source: int,
    stage: int,
    two: tuple[Path, dict[str, Any]],
    world: World,
    expected: dict[str, Any],
) -> None:
    trainer = make_trainer(configure(trainable="attention", zero_stage=stage), world)
    path = two[0] / f"attention {source}" / f"step-{SAVED_AT:08d}"
    trainer.state.load(*load_checkpoint(path, trainer.state.layout()))
    losses = run_steps(trainer, AFTER)
    assert losses == pytest.approx(expected["attention"][2][SAVED_AT:], rel=1e-5)


@pytest.mark.parametrize("stage", [1, 3])
def test_layer_decay_and_frozen_weights_go_together(stage: int, world: World) -> None:
    config = configure(trainable="attention", zero_stage=stage, layer_decay=0.5)
    trainer = make_trainer(config, world)
    run_steps(trainer, STEPS_PER_EPOCH)
    frozen = frozen_of("attention")
    for name, value in trainer.state.weights().items():
        before = make_model().state_dict()[name]
        assert torch.equal(value, before) == (name in frozen) or "bias" in name, name


@pytest.mark.parametrize("stage", [1, 3])
def test_a_frozen_batch_norm_keeps_its_statistics(stage: int, world: World) -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=CLASSES)
    freeze_weights(model, "heads", ["fc"])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    config = configure(trainable="heads", zero_stage=stage).replace(
        distill={"distillation_type": "none"}
    )
    trainer = build.build_trainer(config, world, model, None, STEPS_PER_EPOCH)
    losses = run_steps(trainer, 3)
    assert trainer.state.model.training and losses[0] != losses[-1]
    changed = {
        name
        for name, value in trainer.state.weights().items()
        if not torch.equal(value, before[name])
    }
    assert changed == {"fc.weight", "fc.bias"}
