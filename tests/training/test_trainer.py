"""The step against a plain torch loop: the same weights, moments and EMA, at every ZeRO stage, with
accumulation."""

import math

import pytest
import torch

from fastdeit.distributed.world import World, init_distributed
from fastdeit.kernels.backend import is_fused
from fastdeit.kernels.mix import mix_reference
from fastdeit.training.build import build_trainer
from fastdeit.training.trainer import Trainer
from tests.support.tiny_student import (
    BATCH,
    CLASSES,
    STEPS_PER_EPOCH,
    assert_near,
    configure,
    make_batch,
    make_model,
    make_trainer,
    plain_loop,
    run_steps,
    teach,
)


@pytest.fixture(scope="module")
def world() -> World:
    return init_distributed()


@pytest.mark.parametrize(
    ("stage", "micro", "clip", "steps"),
    [
        (1, BATCH, None, 30),
        (2, BATCH, 0.5, 10),
        (1, 4, None, 10),
        (2, 8, 0.5, 10),
        (3, 8, 0.5, 30),
        pytest.param(2, BATCH, 0.5, 30, marks=pytest.mark.slow),
        pytest.param(1, 4, None, 30, marks=pytest.mark.slow),
        pytest.param(2, 8, 0.5, 30, marks=pytest.mark.slow),
    ],
)
def test_steps_equal_a_plain_loop(
    stage: int, micro: int, clip: float | None, steps: int, world: World
) -> None:
    config = configure(zero_stage=stage, micro_batch=micro, clip_grad=clip)
    trainer = make_trainer(config, world)
    losses = run_steps(trainer, steps, micro)
    model, plain_ema, expected = plain_loop(config, steps)
    assert losses == pytest.approx(expected, rel=1e-5)
    assert_near(trainer.state.weights(), model.state_dict())
    ema = trainer.state.ema_weights()
    assert ema is not None
    assert_near(ema, plain_ema)
    assert trainer.state.skipped == 0 and losses[-1] < losses[0]


def test_ema_module_has_the_ema_weights(world: World) -> None:
    trainer = make_trainer(configure(), world)
    run_steps(trainer, 3)
    module = trainer.state.ema_module()
    weights = trainer.state.ema_weights()
    assert module is not None and weights is not None and not module.training
    for name, value in module.state_dict().items():
        assert torch.equal(value, weights[name]), name
    assert not torch.equal(weights["head.weight"], trainer.state.weights()["head.weight"])
    without = make_trainer(configure(model_ema=False), world)
    assert without.state.ema_module() is None and "ema" not in without.state.gather()[0]


Tensors = dict[str, dict[str, torch.Tensor]]


def assert_same_bits(mine: Tensors, theirs: Tensors) -> None:
    for stem, named in theirs.items():
        for name, value in named.items():
            assert torch.equal(mine[stem][name], value), (stem, name)


def continue_at(stages: tuple[int, int], world: World) -> tuple[tuple[list[float], Tensors], ...]:
    """Return the losses of steps 4 to 7 and the state after them: of one trainer, and of another
    that loads its state of step 4. The EMA's decay depends on the step."""
    ema = {"model_ema_decay": 0.99, "model_ema_warmup": True}
    first = make_trainer(configure(zero_stage=stages[0], **ema), world)
    run_steps(first, 4)
    tensors, state = first.state.gather()
    saved = {
        stem: {name: value.clone() for name, value in named.items()}
        for stem, named in tensors.items()
    }
    second = make_trainer(configure(zero_stage=stages[1], **ema), world)
    run_steps(second, 2)  # another state, which is overwritten
    second.state.load(saved, state)
    assert second.step == 4
    assert_same_bits(second.state.gather()[0], saved)
    return tuple((run_steps(trainer, 4), trainer.state.gather()[0]) for trainer in (first, second))


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_loaded_state_continues_bit_for_bit(stage: int, world: World) -> None:
    (expected, theirs), (losses, mine) = continue_at((stage, stage), world)
    assert losses == expected
    assert_same_bits(mine, theirs)


@pytest.mark.parametrize("stages", [(1, 3), (3, 2), (2, 1)])
def test_state_of_another_stage_continues_equally(stages: tuple[int, int], world: World) -> None:
    """The weights have other addresses, and a processor may have another matrix product for another
    alignment."""
    (expected, theirs), (losses, mine) = continue_at(stages, world)
    assert losses == pytest.approx(expected, rel=1e-5)
    for stem, named in theirs.items():
        assert_near(mine[stem], named)


def test_state_of_another_model_fails(world: World) -> None:
    trainer = make_trainer(configure(), world)
    tensors, state = trainer.state.gather()
    tensors["model"].pop("head.bias")
    with pytest.raises(ValueError, match="parameters are not those"):
        trainer.state.load(tensors, state)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_step_with_nan_is_skipped_and_counted(stage: int, world: World) -> None:
    trainer = make_trainer(configure(zero_stage=stage), world)
    run_steps(trainer, 2)
    before = trainer.state.weights()
    ema = trainer.state.ema_weights()
    batch = make_batch(2)
    batch.images[3, 0, 5, 5] = float("nan")
    trainer.train_step([batch])
    assert trainer.state.skipped == 1 and trainer.step == 3
    after = trainer.state.weights()
    ema_after = trainer.state.ema_weights()
    assert ema is not None and ema_after is not None
    for name, value in before.items():
        assert torch.equal(after[name], value) and torch.equal(ema_after[name], ema[name]), name
    assert all(math.isfinite(loss) for loss in run_steps(trainer, 2))


def test_bf16_has_fp32_masters_with_exact_initial_weights(world: World) -> None:
    trainer = make_trainer(configure(precision="bf16"), world)
    assert trainer.engine.zero_optimization_stage() == 2
    assert trainer.state.model.head.weight.dtype == torch.bfloat16
    exact = make_model().state_dict()
    for name, value in trainer.state.weights().items():
        assert value.dtype == torch.float32 and torch.equal(value, exact[name]), name
    losses = run_steps(trainer, 12)
    assert losses[-1] < losses[0]
    assert losses == pytest.approx(run_steps(make_trainer(configure(), world), 12), rel=0.1)


def test_optimizer_and_schedule_get_the_values_of_the_config(world: World) -> None:
    config = configure(opt_betas=(0.8, 0.95), opt_eps=1e-6, weight_decay=0.2)
    trainer = make_trainer(config, world)
    for group in trainer.engine.optimizer.param_groups:
        assert (group["betas"], group["eps"]) == ((0.8, 0.95), 1e-6)
        assert group["weight_decay"] in (0, 0.2)


def test_two_trainers_in_one_process_use_their_own_kernels(world: World) -> None:
    launched: list[str] = []

    def teacher(images: torch.Tensor) -> torch.Tensor:
        launched[-1:] = [f"{launched[-1]} {is_fused(images)}"]
        return teach(images)

    trainers = {
        name: make_trainer(configure(kernels=name), world, teacher)
        for name in ("reference", "triton")
    }
    losses: dict[str, list[float]] = {}
    for _ in range(2):
        for name, trainer in trainers.items():
            launched.append(name)
            losses.setdefault(name, []).extend(run_steps(trainer, 1))
    assert launched == 2 * ["reference False", "triton True"]
    assert not is_fused(torch.zeros(1))
    assert losses["triton"] == pytest.approx(losses["reference"], rel=1e-5)


def test_gradients_are_summed_in_fp32(world: World) -> None:
    trainer = make_trainer(configure(precision="bf16", micro_batch=4), world)
    assert trainer.engine.optimizer.gradient_accumulation_dtype == torch.float32
    assert trainer.engine.communication_data_type == torch.float32


def test_teacher_sees_the_mixed_images(world: World) -> None:
    seen = []

    def watch(images: torch.Tensor) -> torch.Tensor:
        assert not torch.is_grad_enabled()
        seen.append(images.clone())
        return teach(images)

    trainer = make_trainer(configure(), world, watch)
    run_steps(trainer, 1)
    batch = make_batch(0)
    assert torch.equal(seen[0], mix_reference(batch.images, batch.lam, batch.box))


@pytest.mark.parametrize("stage", [1, 3])
def test_model_with_own_randomness_repeats_a_step(stage: int, world: World) -> None:
    import timm

    def trainer() -> Trainer:
        config = configure(zero_stage=stage).replace(distill={"distillation_type": "none"})
        torch.manual_seed(0)
        model = timm.create_model("test_resnet", num_classes=CLASSES, drop_rate=0.5)
        return build_trainer(config, world, model, None, STEPS_PER_EPOCH)

    first = trainer()
    run_steps(first, 2)
    tensors, state = first.state.gather()
    saved = {
        stem: {name: value.clone() for name, value in named.items()}
        for stem, named in tensors.items()
    }
    rest = run_steps(first, 2)
    second = trainer()
    second.state.load(saved, state)
    torch.rand(17)
    assert run_steps(second, 2) == rest
    assert any("running_mean" in name for name in saved["ema"])
    for name, value in first.state.weights().items():
        assert torch.equal(second.state.weights()[name], value), name
