"""The loader, the student and the trainer of the trial, as a run builds them."""

from pathlib import Path

from fastdeit.config.schema import Config
from fastdeit.data.build import build_quarantine, build_train_index, build_train_loader
from fastdeit.data.index import Index
from fastdeit.data.loaders.train import TrainLoader
from fastdeit.distributed.world import World
from fastdeit.models.build import build_model
from fastdeit.models.sizes import SIZES
from fastdeit.plan.build import build_plan
from fastdeit.training.build import build_trainer
from fastdeit.training.trainer import Trainer

STUDENTS = {"cpu": ("deit_tiny_patch16_224", 8), "cuda": ("deit_small_patch16_224", 128)}
"""The student and its batch size, by device."""
_LR = 1e-3
_STEPS_PER_EPOCH = 1000


def make_config(folder: Path, world: World) -> Config:
    """Return the settings of the recipe `deit` for a small student, without a teacher, on the
    images in a folder.

    The learning rate is constant.
    """
    name, batch_size = STUDENTS[world.device.type]
    return Config().replace(
        data={"data_path": str(folder), "input_size": 224, "bad_images": "skip"},
        model={"model": name},
        distill={"distillation_type": "none"},
        optim={
            **{"batch_size": batch_size, "lr": _LR, "unscale_lr": True, "warmup_epochs": 0.0},
            **{"min_lr": _LR, "model_ema": True},
        },
    )


def build_loader(config: Config, world: World, index: Index) -> TrainLoader:
    """Build the training loader."""
    index, quarantine = build_quarantine(config, index)
    plan = build_plan(config, index.sizes)
    depth = config.model.depth or SIZES[config.model.model].depth
    drop_path = (0.0,) * depth  # bits that keep every branch
    return build_train_loader(
        config, world, index, plan, quarantine=quarantine, drop_path=drop_path
    )


def index_images(config: Config) -> Index:
    """Return the index of the images; store it beside them."""
    return build_train_index(config)


def build_small_trainer(config: Config, world: World, index: Index) -> Trainer:
    """Build a trainer at step 0, whose student has the initial weights of seed 0."""
    model, _ = build_model(config, index.classes)
    return build_trainer(config, world, model, None, _STEPS_PER_EPOCH)
