"""A tiny student trained on a real plan, by DeepSpeed and by plain torch, for the tests of the
trainer and of ZeRO.

`python -m tests.support.tiny_student` writes the losses of the plain loop to parity.json.
"""

import contextlib
import copy
import functools
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import timm.optim
import torch
import torch.nn.functional as F
from torch import nn

from fastdeit.config.schema import Config
from fastdeit.data.loaders.batch import Batch
from fastdeit.distributed.world import World
from fastdeit.kernels.mix import mix_reference
from fastdeit.models.student import Student, build_student
from fastdeit.plan.plan import Plan
from fastdeit.plan.spec import PlanSpec
from fastdeit.training import build
from fastdeit.training.losses import DistillationLoss
from fastdeit.training.state import TrainerState
from fastdeit.training.trainer import Trainer
from fastdeit.training.zero.update import DeepSpeedUpdate

CLASSES = 5
SIZE = 32
BATCH = 16
STEPS_PER_EPOCH = 6
EPOCHS = 5
DROP_PATH = (0.0, 0.3)
LOSSES = Path(__file__).with_name("parity.json")
TRAINED = {"all": ("",), "attention": ("attn", "pos_embed", "head"), "heads": ("head",)}
"""Parts of the names of the weights that train, by --trainable."""
RUN_FIELDS = (
    "zero_stage",
    "precision",
    "offload_optimizer",
    "deepspeed_config",
    "overlap_reduce",
    "kernels",
    "compile",
    "grad_checkpointing",
)


def configure(**changes: Any) -> Config:
    """Return the config of the tests, with --trainable and changed fields of its sections `run`
    and `optim`."""
    trainable = changes.pop("trainable", "all")
    start = {
        "trainable": trainable,
        "finetune": "" if trainable == "all" else "another.safetensors",
    }
    run = {name: changes.pop(name) for name in RUN_FIELDS if name in changes}
    length = {"batch_size": BATCH, "epochs": EPOCHS, "warmup_epochs": 1}
    optim = length | {"lr": 3e-2, "model_ema_decay": 0.9} | changes
    return Config().replace(data={"input_size": SIZE}, optim=optim, run=run, model=start)


def make_model(trainable: str = "all") -> Student:
    name = "deit_tiny_distilled_patch16_224"
    sizes = {"image_size": SIZE, "patch_size": 8}
    sizes |= {"embed_dim": 24, "depth": len(DROP_PATH), "num_heads": 2}
    student = build_student(name, num_classes=CLASSES, drop_path=DROP_PATH[-1], **sizes)
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(any(part in name for part in TRAINED[trainable]))
    return student


def make_trainer(
    config: Config, world: World, teacher: Callable[..., torch.Tensor] | None = None
) -> Trainer:
    model = make_model(config.model.trainable)
    called: Any = teacher or teach  # a function, where the trainer has a `LiveTeacher`
    return build.build_trainer(config, world, model, called, STEPS_PER_EPOCH)


@contextlib.contextmanager
def deepspeed_steps() -> Iterator[None]:
    """Let DeepSpeed's own backward and step run in the trainers that are built here."""

    def choose(
        config: Config, world: World, settings: dict[str, Any], state: TrainerState
    ) -> DeepSpeedUpdate:
        return DeepSpeedUpdate(state.engine, state.partitions)

    with mock.patch.object(build, "build_update", choose):
        yield


def teach(images: torch.Tensor) -> torch.Tensor:
    """Return a teacher's logits (N, CLASSES): a linear map of the mean colours."""
    weights = torch.linspace(-3, 3, 3 * CLASSES, device=images.device)
    return images.float().mean((2, 3)) @ weights.view(3, CLASSES)


@functools.cache
def make_plan() -> Plan:
    return Plan(PlanSpec(seed=3, input_size=SIZE), np.full((BATCH * STEPS_PER_EPOCH, 2), SIZE + 8))


@functools.cache
def _pictures() -> torch.Tensor:
    """Return (N, 3, H, W): noise around the colour of its class; image n has class n % CLASSES."""
    random = torch.Generator().manual_seed(0)
    noise = torch.randn(make_plan().num_images, 3, SIZE + 8, SIZE + 8, generator=random)
    colours = torch.randn(CLASSES, 3, 1, 1, generator=random)
    return noise + colours[torch.arange(len(noise)) % CLASSES]


def make_batch(step: int, rank: int = 0, world_size: int = 1) -> Batch:
    """Return the samples of one rank in one step, cropped and flipped as planned."""
    plan, (epoch, place) = make_plan(), divmod(step, STEPS_PER_EPOCH)
    ordinals = plan.ordinals(place, BATCH, rank, world_size)
    draws = plan.draw(epoch, ordinals)
    images = []
    planned = zip(draws.image_index, draws.crop, draws.flip, strict=True)
    for row, (y, x, height, width), flip in planned:
        window = _pictures()[row, None, :, y : y + height, x : x + width]
        crop = F.interpolate(window, size=(SIZE, SIZE))[0]
        images.append(crop.flip(-1) if flip else crop)
    return Batch(
        unmixed=torch.stack(images),
        labels=torch.from_numpy(draws.image_index % CLASSES),
        lam=torch.from_numpy(draws.lam),
        box=torch.from_numpy(draws.box),
        drop_path_mask=torch.from_numpy(plan.keep(epoch, ordinals, DROP_PATH)),
        ordinals=torch.from_numpy(ordinals),
        image_index=torch.from_numpy(draws.image_index),
    )


def part(batch: Batch, start: int, size: int) -> Batch:
    """Return `size` samples of a batch, from `start` on."""
    rows: dict[str, Any] = {}
    for name, value in vars(batch).items():
        if torch.is_tensor(value):
            rows[name] = value[start : start + size]
    return Batch(**rows)


def run_steps(
    trainer: Trainer, count: int, micro: int = BATCH, rank: int = 0, world_size: int = 1
) -> list[float]:
    """Return the losses of the next `count` steps over this rank's samples, in micro-batches of at
    most `micro`."""
    losses = []
    for _ in range(count):
        batch = make_batch(trainer.step, rank, world_size)
        size = min(micro, len(batch.labels))
        starts = range(0, len(batch.labels), size)
        statistics = trainer.train_step(part(batch, start, size) for start in starts)
        losses.append(statistics[0].item())
    return losses


def plain_loop(
    config: Config, count: int
) -> tuple[nn.Module, dict[str, torch.Tensor], list[float]]:
    """Train in plain torch, with its own schedule and EMA; return model, EMA and losses."""
    model = make_model(config.model.trainable).train()
    ema = copy.deepcopy(model.state_dict())
    decay: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        excluded = name in ("cls_token", "dist_token", "pos_embed") or parameter.ndim < 2
        (rest if excluded else decay).append(parameter)
    groups = [{"params": decay, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}]
    clip = config.optim.clip_grad
    optimizer: torch.optim.Optimizer = torch.optim.AdamW(groups)
    if config.optim.opt == "lamb":
        optimizer = timm.optim.Lamb(groups, eps=config.optim.opt_eps, max_grad_norm=clip or 1.0)
        clip = None
    criterion = DistillationLoss()
    losses = []
    total = EPOCHS * STEPS_PER_EPOCH
    warmup = STEPS_PER_EPOCH
    peak = config.optim.lr * BATCH / 512
    for step in range(count):
        cosine = 1e-5 + 0.5 * (peak - 1e-5) * (1 + math.cos(math.pi * step / total))
        for group in optimizer.param_groups:
            group["lr"] = 1e-6 + step * (peak - 1e-6) / warmup if step < warmup else cosine
        batch = make_batch(step)
        images = mix_reference(batch.images, batch.lam, batch.box)
        outputs = model(images, batch.drop_path_mask)
        loss = criterion(outputs, batch.labels, batch.lam, teach(images)).loss
        optimizer.zero_grad()
        loss.backward()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        losses.append(loss.item())
        for name, value in model.state_dict().items():
            ema[name] = 0.9 * ema[name] + 0.1 * value
    return model, ema, losses


def assert_near(mine: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert set(mine) == set(theirs)
    for name, value in theirs.items():
        torch.testing.assert_close(mine[name], value, rtol=2e-4, atol=2e-6, msg=f"{name} differs")


if __name__ == "__main__":
    LOSSES.parent.mkdir(exist_ok=True)
    found = plain_loop(configure(), EPOCHS * STEPS_PER_EPOCH)[2]
    LOSSES.write_text(json.dumps({"loss": found}, indent=1) + "\n")
