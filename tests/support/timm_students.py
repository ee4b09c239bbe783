"""Tiny timm models as students, with batch statistics and random draws of their own, and the work
of the two ranks of test_timm_students.py."""

from pathlib import Path
from typing import Any

import timm
import torch
import torch.distributed as dist
from torch import nn

from fastdeit.config.schema import Config
from fastdeit.distributed.exits import hard_exit
from fastdeit.distributed.world import World, init_distributed
from fastdeit.training.build import build_trainer
from fastdeit.training.trainer import Trainer
from tests.support.tiny_student import BATCH, CLASSES, STEPS_PER_EPOCH, configure, run_steps, teach

STEPS = 5


def make_timm_model(kind: str, drop: float = 0.2) -> nn.Module:
    """Return a model with one head or two; LeViT, with two, caches the biases of its attention in
    evaluation."""
    torch.manual_seed(0)
    if kind == "one head":
        return timm.create_model("test_resnet", num_classes=CLASSES, drop_rate=drop)
    sizes = {"embed_dim": (16, 16, 16), "depth": (1, 1, 1), "num_heads": (2, 2, 2), "key_dim": 4}
    model: Any = timm.create_model(
        "levit_128s", num_classes=CLASSES, img_size=64, drop_path_rate=drop, **sizes
    )
    model.set_distilled_training(True)
    return model


def build(kind: str, config: Config, world: World) -> Trainer:
    called: Any = teach
    return build_trainer(config, world, make_timm_model(kind), called, STEPS_PER_EPOCH)


def main(folder: Path) -> None:
    """Train the model with one head at every ZeRO stage; each rank writes its results to
    FOLDER/RANK.pt."""
    world = init_distributed()
    results: dict[str, Any] = {}
    for stage in (1, 2, 3):
        trainer = build("one head", configure(zero_stage=stage), world)
        losses = run_steps(trainer, STEPS, BATCH // world.size, world.rank, world.size)
        ema = trainer.state.ema_weights()
        found = {"losses": losses, "weights": trainer.state.weights(), "ema": ema}
        results[str(stage)] = found
    torch.save(results, folder / f"{world.rank}.pt")
    dist.barrier()
    hard_exit(0)  # gloo's threads may abort a process that ends by itself
