"""A run from its `Config` to its end: check, build, resume, train, evaluate, save, show. Called by train.py and `fastdeit`."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from fastdeit import build
from fastdeit.checkpoint.select import find_checkpoint
from fastdeit.checkpoint.writer import CheckpointError, CheckpointWriter
from fastdeit.config.cli import one_line_errors, parse_config
from fastdeit.config.parse import parse_time_limit
from fastdeit.config.schema import Config
from fastdeit.data.index import DataError, Index
from fastdeit.display.console import RunConsole
from fastdeit.distributed.collectives import each_rank, meet, on_every_rank, on_rank0
from fastdeit.distributed.world import World, init_distributed
from fastdeit.plan.plan import Plan
from fastdeit.reliability.health import Health, HealthError
from fastdeit.reliability.run_lock import RunLock
from fastdeit.reliability.supervisor import STOP_FILE, StopAgreed, Supervisor
from fastdeit.run.folder import FolderError, open_folder, write_outcome
from fastdeit.run.identity import (
    check_same_everywhere,
    check_same_images,
    check_same_run,
    check_same_samples,
)
from fastdeit.run.loop import evaluate_run, train
from fastdeit.run.preflight import check_config
from fastdeit.run.results import is_finished, say_finished
from fastdeit.run.resume import take_up
from fastdeit.run.state import Run
from fastdeit.teacher_cache.check import open_cache
from fastdeit.teacher_cache.format import CacheError
from fastdeit.teacher_cache.reader import Replay
from fastdeit.training.build import build_deepspeed_config, build_trainer, precision
from fastdeit.training.trainer import Trainer


def train_command(argv: Sequence[str], prog: str) -> int:
    """`fastdeit train`: 0; exit code 2 for a command line, a data set or a checkpoint that cannot be used; 1 for images that
    cannot be read in mid-run, where --bad-images or their number ends it."""
    with one_line_errors():
        config, recipe = parse_config(argv, prog)
    folder, limits = Path(config.run.output_dir), config.limits.sections()
    with (
        Supervisor(folder, limits, parse_time_limit(config.run.time_limit)) as supervisor,
        RunLock(folder) as lock,
    ):
        with one_line_errors():
            world = init_distributed(
                max(limits.values()) + 60
            )  # the watchdog speaks before the collectives' own time-out does
            supervisor.listen()
            run = _prepare(config, recipe, world, supervisor, lock)
        try:
            return 0 if run is None else _execute(run)
        except (CacheError, CheckpointError, DataError, FolderError, HealthError) as error:
            # it may be on one rank alone: the launcher then ends the others
            supervisor.fail(error)
            every_rank_hears = isinstance(error, CheckpointError | FolderError | HealthError)
            if world.rank == 0 or not every_rank_hears:
                print(f"fastdeit: error: {error}", file=sys.stderr)
            return supervisor.leave(1)


def _prepare(
    config: Config, recipe: str, world: World, supervisor: Supervisor, lock: RunLock
) -> Run | None:
    """A run ready for its next step, with nothing written yet but the lock; None if it was finished before."""
    folder = Path(config.run.output_dir)
    check_same_everywhere(config)
    on_every_rank(lambda: check_config(config, world.size))
    on_every_rank(lambda: build_deepspeed_config(config, world))
    on_rank0(lambda: check_same_run(config, folder))
    if on_rank0(lambda: is_finished(folder)):
        say_finished(config, recipe, world, folder)
        return None
    on_rank0(lock.acquire)
    run = _build_run(config, recipe, world, folder, supervisor)
    _resume(run)
    return run


def _execute(run: Run) -> int:
    """Trains from where the run stands to its end, or to where it was told to stop: 0 either way."""
    try:
        run.supervisor.check_now()
        open_folder(run)
        run.console.heading(_facts(run))
        run.mark = (time.monotonic(), run.trainer.step)
        train(run)
        write_outcome(run, evaluate_run(run, with_teacher=True))
        meet()
    except StopAgreed as reason:
        _stop(run, str(reason))
    finally:
        run.console.stop()
        run.train_loader.close()
        run.val_loader.close()
        run.checkpoints.close()
        run.health.close()
        if run.log is not None:
            run.log.close()
        run.trainer.engine.destroy()
    return 0


def _stop(run: Run, reason: str) -> None:
    done = f"stopped after step {run.trainer.step} of {run.total_steps} ({reason})"
    run.console.note(f"{done}; the same command goes on from there")
    if run.world.rank == 0:
        (run.folder / STOP_FILE).unlink(missing_ok=True)
    meet()


class Training(NamedTuple):
    """What trains, at step 0; drop_path: the student's rates, as the loaders take them; notes: as `Run.notes`."""

    plan: Plan
    replay: Replay | None
    trainer: Trainer
    drop_path: tuple[float, ...]
    notes: list[str]


def build_training(config: Config, world: World, index: Index) -> Training:
    """The plan over a run's training images, and the student under DeepSpeed with its teacher; a collective."""
    plan = build.build_plan(config, index)
    pixels = build.pipeline_options(config, world).describe()
    teacher = each_rank(lambda: build.build_teacher(config, world, index.classes))
    replay = open_cache(config, plan, index, pixels, teacher) if config.distill.cache else None
    model, notes = each_rank(lambda: build.build_model(config, len(index.classes)))
    rates = getattr(model, "drop_path_rates", ())
    trainer = build_trainer(
        config, world, model, teacher, plan.steps_per_epoch(config.optim.batch_size), replay
    )
    return Training(plan, replay, trainer, rates, notes)


def _build_run(
    config: Config, recipe: str, world: World, folder: Path, supervisor: Supervisor
) -> Run:
    indexes = build.build_data(config)
    (train_index, quarantine), (val_index, val_quarantine) = (
        build.build_quarantine(config, index) for index in indexes
    )
    check_same_images(train_index, val_index, build.pipeline_options(config, world).describe())
    plan, replay, trainer, rates, notes = build_training(config, world, train_index)
    train_loader = build.build_train_loader(
        config, world, train_index, plan, rates, quarantine, replay
    )
    val_loader = build.build_eval_loader(config, world, val_index, val_quarantine)
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
        replay=replay,
        console=console,
        supervisor=supervisor,
        checkpoints=CheckpointWriter(
            folder / "checkpoints", config.run.keep_checkpoints, world.rank
        ),
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
        parameter.numel() for parameter in run.trainer.shadow.parameters()
    )  # ZeRO 3 empties the engine's
    stage = run.trainer.engine.zero_optimization_stage()
    teacher = run.trainer.teacher
    facts = {
        "run": f"{run.folder}  (recipe {run.recipe}, seed {config.run.seed})",
        "devices": f"{world.size} x {device}, {precision(config, world)[0]}, ZeRO {stage}",
        "data": f"{config.data.data_path}: {len(run.train_index):,} training and {len(run.val_index):,} validation images, "
        f"{len(run.train_index.classes)} classes, {config.data.input_size} px",
        "student"
        if teacher or run.replay
        else "model": f"{config.model.model}, {parameters / 1e6:.2f} M parameters",
        "augmentation": f"{config.augment.aa}, {run.train_loader.options.describe()}",
        "teacher": run.replay.describe()
        if run.replay
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


def _resume(run: Run) -> None:
    found = find_checkpoint(run.folder, run.config.run.resume, run.trainer.layout())
    if found is None:
        return
    check_same_samples(found.state, run.fingerprints, found.path)
    take_up(run, found)
    run.notes += [f"passed over: {fault}" for fault in found.passed_over]
    run.notes.append(
        f"goes on from {found.path}, after step {run.trainer.step} of {run.total_steps}"
    )
    if "digest" not in found.state:
        run.notes.append(
            f"the checkpoint has no digest: that in metrics.jsonl is of the samples from step {run.trainer.step} on"
        )
    then, now = found.state.get("quarantine"), run.quarantine.fingerprint()
    if then not in (None, now):
        run.notes.append(
            "images were found damaged, or their list was removed, since then: steps may hold other samples"
        )
