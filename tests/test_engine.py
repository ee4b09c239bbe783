"""The step against a plain torch loop: same weights, moments and average, at both ZeRO stages, with accumulation."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from fastdeit import build
from fastdeit.config import Config
from fastdeit.data.loader import Batch
from fastdeit.distributed import World, init_distributed
from fastdeit.engine import Trainer
from fastdeit.kernels.mix import mix_reference
from fastdeit.losses import DistillationLoss
from fastdeit.models.student import Student, build_student

CLASSES, SIZE, BATCH, STEPS_PER_EPOCH = 5, 32, 16, 6


@pytest.fixture(scope="module")
def world() -> World:
    return init_distributed()


def configure(**optim: Any) -> Config:
    run: dict[str, Any] = {name: optim.pop(name) for name in ("zero_stage", "precision") if name in optim}
    return Config().replace(
        data={"input_size": SIZE},
        optim={"batch_size": BATCH, "epochs": 5, "warmup_epochs": 1, "lr": 3e-2, "model_ema_decay": 0.9, **optim},
        run=run,
    )


def make_model() -> Student:
    torch.manual_seed(0)
    name = "deit_tiny_distilled_patch16_224"
    sizes = {"image_size": SIZE, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2}
    return build_student(name, num_classes=CLASSES, drop_path=0.3, **sizes)


def make_batch(step: int, size: int = BATCH) -> Batch:
    random = torch.Generator().manual_seed(step)
    lam = torch.rand(size // 2, generator=random).repeat_interleave(2)
    box = torch.zeros(size, 4, dtype=torch.int32)
    box[: size // 2] = torch.tensor([4, 8, 20, 30], dtype=torch.int32)
    lam[: size // 2] = 1 - 16 * 22 / SIZE**2
    return Batch(
        images=torch.randn(size, 3, SIZE, SIZE, generator=random),
        labels=torch.randint(0, CLASSES, (size,), generator=random),
        lam=lam,
        box=box,
        keep=torch.rand(size, 3, 2, generator=random) > 0.3,
        ordinals=torch.arange(size),
    )


def part(batch: Batch, start: int, size: int) -> Batch:
    return Batch(**{name: value[start : start + size] for name, value in vars(batch).items()})


def teach(images: torch.Tensor) -> torch.Tensor:
    return images.float().mean((2, 3)) @ torch.linspace(-3, 3, 3 * CLASSES).view(3, CLASSES)


def make_trainer(config: Config, world: World, teacher: Callable[..., torch.Tensor] | None = teach) -> Trainer:
    return build.build_trainer(config, world, make_model(), teacher, STEPS_PER_EPOCH)  # type: ignore[arg-type]


def run_steps(trainer: Trainer, count: int, micro: int = BATCH) -> list[float]:
    losses = []
    for _ in range(count):
        batch = make_batch(trainer.step)
        losses.append(trainer.train_step(part(batch, start, micro) for start in range(0, BATCH, micro))[0].item())
    return losses


def plain_loop(config: Config, count: int) -> tuple[nn.Module, dict[str, torch.Tensor], list[float]]:
    """AdamW, schedule, clipping and average written out again in plain torch."""
    model = make_model().train()
    average = copy.deepcopy(model.state_dict())
    decay = [p for n, p in model.named_parameters() if p.ndim > 1 and n not in ("cls_token", "dist_token", "pos_embed")]
    rest = [p for p in model.parameters() if not any(p is d for d in decay)]
    optimizer = torch.optim.AdamW([{"params": decay, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}])
    criterion, losses = DistillationLoss(), []
    total, warmup, peak = 5 * STEPS_PER_EPOCH, STEPS_PER_EPOCH, config.optim.lr * BATCH / 512
    for step in range(count):
        cosine = 1e-5 + 0.5 * (peak - 1e-5) * (1 + math.cos(math.pi * step / total))
        for group in optimizer.param_groups:
            group["lr"] = 1e-6 + step * (peak - 1e-6) / warmup if step < warmup else cosine
        batch = make_batch(step)
        images = mix_reference(batch.images, batch.lam, batch.box)
        loss = criterion(model(images, batch.keep), batch.labels, batch.lam, teach(images)).loss
        optimizer.zero_grad()
        loss.backward()
        if config.optim.clip_grad:
            nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip_grad)
        optimizer.step()
        losses.append(loss.item())
        for name, value in model.state_dict().items():
            average[name] = 0.9 * average[name] + 0.1 * value
    return model, average, losses


def assert_near(mine: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert set(mine) == set(theirs)
    for name, value in theirs.items():
        torch.testing.assert_close(mine[name], value, rtol=2e-4, atol=2e-6, msg=f"{name} differs")


@pytest.mark.parametrize(("stage", "micro", "clip"), [(1, BATCH, None), (2, BATCH, 0.5), (1, 4, None), (2, 8, 0.5)])
def test_steps_equal_a_plain_loop(stage: int, micro: int, clip: float | None, world: World) -> None:
    config = configure(zero_stage=stage, micro_batch=micro, clip_grad=clip)
    trainer = make_trainer(config, world)
    losses = run_steps(trainer, 30, micro)
    model, average, expected = plain_loop(config, 30)
    assert losses == pytest.approx(expected, rel=1e-5)
    assert_near(trainer.weights(), model.state_dict())
    ema = trainer.ema_weights()
    assert ema is not None
    assert_near(ema, average)
    assert trainer.skipped == 0 and losses[-1] < losses[0]


def test_the_average_is_what_is_evaluated(world: World) -> None:
    trainer = make_trainer(configure(), world)
    run_steps(trainer, 3)
    module, weights = trainer.ema_module(), trainer.ema_weights()
    assert module is not None and weights is not None and not module.training
    for name, value in module.state_dict().items():
        assert torch.equal(value, weights[name]), name
    assert not torch.equal(weights["head.weight"], trainer.weights()["head.weight"])
    without = make_trainer(configure(model_ema=False), world)
    assert without.ema_module() is None and "ema" not in without.state()[0]


@pytest.mark.parametrize("stages", [(1, 1), (2, 2), (1, 2), (2, 1)])
def test_state_taken_up_goes_on_bit_for_bit(stages: tuple[int, int], world: World) -> None:
    first = make_trainer(configure(zero_stage=stages[0]), world)
    run_steps(first, 4)
    tensors, state = first.state()
    saved = {stem: {name: value.clone() for name, value in named.items()} for stem, named in tensors.items()}
    rest = run_steps(first, 4)
    second = make_trainer(configure(zero_stage=stages[1]), world)
    run_steps(second, 2)  # something else to be overwritten
    second.load_state(saved, state)
    assert second.step == 4
    assert run_steps(second, 4) == rest
    for stem, named in first.state()[0].items():
        for name, value in named.items():
            assert torch.equal(second.state()[0][stem][name], value), (stem, name)


def test_state_of_another_model_is_refused(world: World) -> None:
    trainer = make_trainer(configure(), world)
    tensors, state = trainer.state()
    tensors["model"].pop("head.bias")
    with pytest.raises(ValueError, match="parameters are not those"):
        trainer.load_state(tensors, state)


@pytest.mark.parametrize("stage", [1, 2])
def test_a_step_with_nan_is_skipped_and_counted(stage: int, world: World) -> None:
    trainer = make_trainer(configure(zero_stage=stage), world)
    run_steps(trainer, 2)
    before, average = trainer.weights(), trainer.ema_weights()
    batch = make_batch(2)
    batch.images[3, 0, 5, 5] = float("nan")
    trainer.train_step([batch])
    assert trainer.skipped == 1 and trainer.step == 3
    after, average_after = trainer.weights(), trainer.ema_weights()
    assert average is not None and average_after is not None
    for name, value in before.items():
        assert torch.equal(after[name], value) and torch.equal(average_after[name], average[name]), name
    assert all(math.isfinite(loss) for loss in run_steps(trainer, 2))


def test_bf16_keeps_fp32_masters_that_start_exact(world: World) -> None:
    trainer = make_trainer(configure(precision="bf16"), world)
    assert trainer.engine.zero_optimization_stage() == 2
    assert trainer.engine.module.head.weight.dtype == torch.bfloat16
    exact = make_model().state_dict()
    for name, value in trainer.weights().items():
        assert value.dtype == torch.float32 and torch.equal(value, exact[name]), name
    losses = run_steps(trainer, 12)
    assert losses[-1] < losses[0]
    assert losses == pytest.approx(run_steps(make_trainer(configure(), world), 12), rel=0.1)


def test_gradients_are_summed_in_fp32(world: World) -> None:
    trainer = make_trainer(configure(precision="bf16", micro_batch=4), world)
    assert trainer.engine.optimizer.gradient_accumulation_dtype == torch.float32
    assert trainer.engine.communication_data_type == torch.float32


def test_the_teacher_sees_the_mixed_images(world: World) -> None:
    seen = []

    def watch(images: torch.Tensor) -> torch.Tensor:
        assert not torch.is_grad_enabled()
        seen.append(images.clone())
        return teach(images)

    trainer = make_trainer(configure(), world, watch)
    run_steps(trainer, 1)
    batch = make_batch(0)
    assert torch.equal(seen[0], mix_reference(batch.images, batch.lam, batch.box))


def test_a_model_with_randomness_of_its_own_repeats_a_step(world: World) -> None:
    import timm

    def trainer() -> Trainer:
        config = configure().replace(distill={"distillation_type": "none"})
        torch.manual_seed(0)
        model = timm.create_model("test_resnet", num_classes=CLASSES, drop_rate=0.5)
        return build.build_trainer(config, world, model, None, STEPS_PER_EPOCH)

    first = trainer()
    run_steps(first, 2)
    tensors, state = first.state()
    saved = {stem: {name: value.clone() for name, value in named.items()} for stem, named in tensors.items()}
    rest = run_steps(first, 2)
    second = trainer()
    second.load_state(saved, state)
    torch.rand(17)
    assert run_steps(second, 2) == rest
    assert any("running_mean" in name for name in saved["ema"])
    for name, value in first.weights().items():
        assert torch.equal(second.weights()[name], value), name
