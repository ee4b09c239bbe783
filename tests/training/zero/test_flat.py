"""Flat parameters under DeepSpeed: results equal to single parameters, weights that are views, and
freed activations."""

import copy
import weakref
from typing import Any

import pytest
import torch
from torch import nn

from fastdeit.config.schema import Config
from fastdeit.distributed.world import World, init_distributed
from fastdeit.kernels.distill import LossParts
from fastdeit.training import build
from fastdeit.training.optim.optimizers import parameter_groups
from fastdeit.training.trainer import Trainer
from fastdeit.training.zero.flat import FlatLossModule, LossModule
from tests.support.tiny_student import (
    BATCH,
    CLASSES,
    STEPS_PER_EPOCH,
    configure,
    deepspeed_steps,
    make_batch,
    make_trainer,
    run_steps,
)

NO_CONTIGUOUS_BUCKET = {"reduce_bucket_size": 1000}
"""Every flat gradient is larger than DeepSpeed's bucket, as that of DeiT-B is."""


@pytest.fixture(scope="module")
def world() -> World:
    return init_distributed()


def trainer_with_own_parameters(
    config: Config, world: World, monkeypatch: pytest.MonkeyPatch
) -> Trainer:
    """Build a trainer for a model that keeps its own parameters, as at ZeRO 3, at every stage, and
    that DeepSpeed steps."""

    class OwnParameters(LossModule):
        def __init__(self, model: nn.Module, groups: list[dict[str, Any]]) -> None:
            super().__init__(model, groups)
            # DeepSpeed puts the parameters of a group one after another, in the group's order
            self.slots = FlatLossModule(model, groups).slots

    with monkeypatch.context() as patch, deepspeed_steps():
        patch.setattr(build, "FlatLossModule", OwnParameters)
        trainer = make_trainer(config, world)
    seen = len(list(trainer.engine.module.parameters()))
    assert seen == len(list(trainer.state.eval_model.parameters()))
    return trainer


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize(("stage", "precision"), [(1, "fp32"), (2, "fp32"), (2, "bf16")])
def test_flat_parameters_train_bit_for_bit_as_single_ones(
    stage: int, precision: str, accumulate: int, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    micro = BATCH // accumulate
    config = configure(zero_stage=stage, precision=precision, micro_batch=micro)
    flat = make_trainer(config, world)
    single = trainer_with_own_parameters(config, world, monkeypatch)
    assert len(list(flat.engine.module.parameters())) == 2
    assert run_steps(flat, 6, micro) == run_steps(single, 6, micro)
    tensors, state = flat.state.gather()
    expected, expected_state = single.state.gather()
    assert state == expected_state
    for stem, named in expected.items():
        assert list(tensors[stem]) == list(named)
        assert all(torch.equal(tensors[stem][name], value) for name, value in named.items()), stem


def test_weights_are_views_that_follow_the_flat_parameters(world: World) -> None:
    trainer = make_trainer(configure(), world)
    for _ in range(2):
        run_steps(trainer, 1)
        weights = trainer.state.weights()
        assert all(
            torch.equal(value, weights[name])
            for name, value in trainer.state.model.state_dict().items()
        )
    flats = list(trainer.engine.module.parameters())
    spans = [(flat.data_ptr(), flat.data_ptr() + flat.nbytes) for flat in flats]
    for name, weight in trainer.state.model.named_parameters():
        assert any(start <= weight.data_ptr() < end for start, end in spans), name
    flats[1].data.zero_()
    assert not trainer.state.model.head.weight.any() and trainer.state.model.norm.weight.any()


def test_layer_decay_gives_a_flat_parameter_for_each_depth_and_decay(world: World) -> None:
    config = configure(layer_decay=0.5)
    trainer = make_trainer(config, world)
    depth = len(trainer.state.model.blocks)
    assert len(list(trainer.engine.module.parameters())) == 2 * (depth + 2)
    before = trainer.state.weights()
    run_steps(trainer, STEPS_PER_EPOCH)
    for name, value in trainer.state.weights().items():
        assert "bias" in name or not torch.equal(value, before[name]), name
    # the log has the rate of the heads, which no decay lowers; the last step of the warm-up
    low, high = config.optim.warmup_lr, config.optim.scaled_lr
    share = (STEPS_PER_EPOCH - 1) / STEPS_PER_EPOCH
    assert trainer.lr == pytest.approx(low + share * (high - low))


def test_gradient_larger_than_the_bucket_gives_equal_losses(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = run_steps(make_trainer(configure(precision="bf16"), world), 4)
    settings = build.build_deepspeed_config(configure(precision="bf16"), world)
    settings["zero_optimization"] |= NO_CONTIGUOUS_BUCKET
    monkeypatch.setattr(build, "build_deepspeed_config", lambda *_: settings)
    trainer = make_trainer(configure(precision="bf16"), world)
    bucket = trainer.engine.optimizer.reduce_bucket_size
    assert all(flat.numel() > bucket for flat in trainer.engine.module.parameters())
    assert run_steps(trainer, 4) == expected


@pytest.mark.slow
def test_fused_kernels_run_in_the_flat_backward(world: World) -> None:
    expected = run_steps(make_trainer(configure(), world), 2)
    losses = run_steps(make_trainer(configure(kernels="triton"), world), 2)
    assert losses == pytest.approx(expected, rel=1e-5)


class Toy(nn.Module):
    """A model with a weight that the loss uses, one that it does not, and a frozen one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.used = nn.Linear(3, 1, bias=False)
        self.unused = nn.Parameter(torch.ones(2, 2))
        self.frozen = nn.Parameter(torch.full((1,), 2.0), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.used(x) * self.frozen).sum()


def losses_of(model: nn.Module, x: torch.Tensor) -> LossParts:
    loss = model(x)
    return LossParts(loss, loss.detach() * 2, loss.detach() * 3)


def make_flat(model: nn.Module) -> FlatLossModule:
    module = FlatLossModule(model, parameter_groups(model, 0.05))
    module.bind()
    return module


def gradients(module: FlatLossModule) -> dict[str, torch.Tensor]:
    (flat,) = module.parameters()
    assert flat.grad is not None
    return {slot.name: slot.of(flat.grad) for slot in module.slots[0]}


def test_unused_weight_has_zero_gradient_and_frozen_weight_none() -> None:
    module = make_flat(Toy())
    x = torch.randn(5, 3)
    parts = module(lambda model: losses_of(model, x))
    (3 * parts.loss).backward()
    found = gradients(module)
    torch.testing.assert_close(found.pop("used.weight"), 6 * x.sum(0, keepdim=True))
    assert not found.pop("unused").any() and not found and module.model.frozen.grad is None
    loss = parts.loss.item()
    assert [part.item() for part in parts] == pytest.approx([loss, 2 * loss, 3 * loss])
    assert not parts.base.requires_grad and not parts.distill.requires_grad


def test_frozen_weight_has_the_training_precision() -> None:
    model = Toy()
    module = FlatLossModule(model, parameter_groups(model, 0.05))
    # as DeepSpeed casts the parameters that it sees
    for flat in module.parameters():
        flat.data = flat.data.to(torch.bfloat16)
    module.bind()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.frozen.item() == 2.0 and not model.frozen.requires_grad


def test_shared_weight_stays_shared() -> None:
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    expected = copy.deepcopy(model)
    x = torch.randn(5, 3)
    module = make_flat(model)
    parts = module(lambda model: LossParts(*[model(x).sum()] * 3))
    parts.loss.backward()
    expected(x).sum().backward()
    assert model[1].weight is model[0].weight
    torch.testing.assert_close(gradients(module)["0.weight"], expected[0].weight.grad)


def test_backward_frees_the_activations() -> None:
    module = make_flat(Toy())
    kept = []

    def compute(model: nn.Module) -> LossParts:
        x = torch.randn(5, 3, requires_grad=True) * 1.0
        kept.append(weakref.ref(x))
        return losses_of(model, x)

    parts = module(compute)
    assert kept[0]() is not None  # saved for the gradient of the weight
    parts.loss.backward(retain_graph=True)
    assert kept[0]() is None
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        parts.loss.backward()


def test_two_forward_passes_before_a_backward_keep_their_own_graphs() -> None:
    module = make_flat(Toy())
    first = torch.randn(5, 3)
    second = torch.randn(5, 3)
    losses = [module(lambda model, x=x: losses_of(model, x)).loss for x in (first, second)]
    losses[1].backward()
    losses[0].backward()
    expected = 2 * (first + second).sum(0, keepdim=True)
    torch.testing.assert_close(gradients(module)["used.weight"], expected)


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_timm_model_trains_equally_with_flat_parameters(name: str, world: World) -> None:
    import timm

    def train(stage: int) -> tuple[list[float], dict[str, torch.Tensor]]:
        torch.manual_seed(0)
        sized = {"img_size": 32} if name == "test_vit" else {}
        config = configure(zero_stage=stage).replace(distill={"distillation_type": "none"})
        model = timm.create_model(name, num_classes=CLASSES, **sized)
        trainer = build.build_trainer(config, world, model, None, STEPS_PER_EPOCH)
        return run_steps(trainer, 4), trainer.state.weights()

    (flat, weights), (single, expected) = train(2), train(3)
    assert flat == pytest.approx(single, rel=1e-5)
    for key, value in expected.items():
        torch.testing.assert_close(weights[key], value, rtol=1e-4, atol=1e-5)


def test_each_micro_batch_is_seen_once(world: World) -> None:
    """The closure that computes the loss refers to the batch of its own micro-step."""
    trainer = make_trainer(configure(micro_batch=BATCH // 2), world)
    halves = [make_batch(0), make_batch(0)]
    seen: list[int] = []
    own = trainer.criterion

    def criterion(outputs, labels, *rest):  # type: ignore[no-untyped-def]
        seen.append(id(labels))
        return own(outputs, labels, *rest)

    trainer.criterion = criterion  # type: ignore[assignment]
    trainer.train_step(halves)
    assert seen == [id(half.labels) for half in halves]
