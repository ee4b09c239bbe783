"""A run from its `Config` to its end: check, build, resume, train, evaluate, save, show. Called by
train.py and `fastdeit`."""

from typing import NamedTuple

import torch

from fastdeit.checkpoint.writer import CheckpointWriter
from fastdeit.config.schema import Config
from fastdeit.data.build import (
    build_data,
    build_eval_loader,
    build_quarantine,
    build_train_loader,
    pipeline_options,
)
from fastdeit.data.index import Index
from fastdeit.display.console import RunConsole
from fastdeit.distributed.collectives import each_rank
from fastdeit.distributed.world import World
from fastdeit.models.build import build_model, build_teacher, precision
from fastdeit.plan.build import build_plan
from fastdeit.plan.plan import Plan
from fastdeit.reliability.health import Health
from fastdeit.reliability.supervisor import Supervisor
from fastdeit.run.identity import (
    check_same_images,
)
from fastdeit.run.state import Run
from fastdeit.storage.run_folder import RunFolder
from fastdeit.teacher_cache.check import open_cache
from fastdeit.teacher_cache.reader import CachedTeacher
from fastdeit.training.build import build_trainer
from fastdeit.training.trainer import Trainer


class Training(NamedTuple):
    """What trains, at step 0; drop_path: the student's rates, as the loaders take them; notes: as
    `Run.notes`."""

    plan: Plan
    cached_teacher: CachedTeacher | None
    trainer: Trainer
    drop_path: tuple[float, ...]
    notes: list[str]


def build_training(config: Config, world: World, index: Index) -> Training:
    """The plan over a run's training images, and the student under DeepSpeed with its teacher; a
    collective."""
    plan = build_plan(config, index.sizes)
    pixels = pipeline_options(config, world).describe()
    teacher = each_rank(lambda: build_teacher(config, world, index.classes))
    cached_teacher = (
        open_cache(config, plan, index, pixels, teacher) if config.distill.cache else None
    )
    model, notes = each_rank(lambda: build_model(config, len(index.classes)))
    rates = getattr(model, "drop_path_rates", ())
    decode = None
    if cached_teacher is not None:
        decode = cached_teacher.decoder(hard=config.distill.distillation_type == "hard")
    steps_per_epoch = plan.steps_per_epoch(config.optim.batch_size)
    trainer = build_trainer(config, world, model, teacher, steps_per_epoch, decode)
    return Training(plan, cached_teacher, trainer, rates, notes)


def _build_run(
    config: Config, recipe: str, world: World, folder: RunFolder, supervisor: Supervisor
) -> Run:
    indexes = build_data(config)
    (train_index, quarantine), (val_index, val_quarantine) = (
        build_quarantine(config, index) for index in indexes
    )
    check_same_images(train_index, val_index, pipeline_options(config, world).describe())
    plan, cached_teacher, trainer, rates, notes = build_training(config, world, train_index)
    train_loader = build_train_loader(
        config, world, train_index, plan, rates, quarantine, cached_teacher
    )
    val_loader = build_eval_loader(config, world, val_index, val_quarantine)
    console = RunConsole(config.optim.epochs, train_loader.steps_per_epoch, enabled=world.rank == 0)
    return Run(
        config=config,
        recipe=recipe,
        world=world,
        folder=folder,
        train_index=train_index,
        val_index=val_index,
        plan=plan,
        trainer=trainer,
        train_loader=train_loader,
        val_loader=val_loader,
        quarantine=quarantine,
        cached_teacher=cached_teacher,
        console=console,
        supervisor=supervisor,
        checkpoints=CheckpointWriter(folder.checkpoints, config.run.keep_checkpoints, world.rank),
        health=Health(
            folder, world.rank, train_loader.steps_per_epoch, config.optim.batch_size, console.note
        ),
        notes=[*notes, *_left_out(train_index), *_left_out(val_index)],
    )


def _left_out(index: Index) -> list[str]:
    """A note on the images that the index does not take."""
    if not index.left_out:
        return []
    more = f" and {len(index.left_out) - 3} more" if len(index.left_out) > 3 else ""
    return [
        f"{len(index.left_out)} damaged images of {index.split} left out: {'; '.join(index.left_out[:3])}{more}"
    ]


def _facts(run: Run) -> dict[str, str]:
    config, world, notes = run.config, run.world, run.notes
    device = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else "CPU"
    parameters = sum(
        parameter.numel() for parameter in run.trainer.state.eval_model.parameters()
    )  # ZeRO 3 empties the engine's
    stage = run.trainer.engine.zero_optimization_stage()
    teacher = run.trainer.teacher
    facts = {
        "run": f"{run.folder}  (recipe {run.recipe}, seed {config.run.seed})",
        "devices": f"{world.size} x {device}, {precision(config, world)[0]}, ZeRO {stage}",
        "data": f"{config.data.data_path}: {len(run.train_index):,} training and {len(run.val_index):,} validation images, "
        f"{len(run.train_index.classes)} classes, {config.data.input_size} px",
        "student"
        if teacher or run.cached_teacher
        else "model": f"{config.model.model}, {parameters / 1e6:.2f} M parameters",
        "augmentation": f"{config.augment.aa}, {run.train_loader.options.describe()}",
        "teacher": run.cached_teacher.describe()
        if run.cached_teacher
        else teacher.describe()
        if teacher
        else "none",
        "schedule": f"{config.optim.epochs} epochs of {run.steps_per_epoch} steps, batch {config.optim.batch_size}",
    }
    if stage != config.run.zero_stage:
        notes = [
            *notes,
            f"ZeRO {config.run.zero_stage} replaced by {stage}: the same maths, gradients summed in fp32",
        ]
    return facts | {f"note {number}": note for number, note in enumerate(notes, 1)}
