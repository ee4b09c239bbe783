"""A run from its `Config` to its end: check, build, resume, train, evaluate, save, show. Called by train.py and `fastdeit`."""

import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist
import yaml
from safetensors.torch import save_file

from fastdeit import build
from fastdeit.cache_check import open_cache
from fastdeit.checkpoint import set_aside, sweep
from fastdeit.checkpoint_writer import CheckpointError, CheckpointWriter
from fastdeit.cli import one_line_errors, parse_config
from fastdeit.config import Config, parse_time_limit
from fastdeit.console import RunConsole
from fastdeit.data.index import DataError, Index
from fastdeit.data.snapshot import keep_images
from fastdeit.distributed import World, init_distributed, meet, on_every_rank, on_rank0
from fastdeit.durable import write_whole
from fastdeit.failure import take_failures, tell
from fastdeit.identity import check_same_everywhere, check_same_run, check_same_samples
from fastdeit.kernels.mix import mix
from fastdeit.loop import Run, evaluate_run, train
from fastdeit.metrics import MetricLog, read_metrics
from fastdeit.models.manifest import CacheError
from fastdeit.outcome import SUMMARY, is_finished, say_finished, show_summary
from fastdeit.preflight import check_config
from fastdeit.resumption import find_checkpoint
from fastdeit.run_lock import RunLock
from fastdeit.supervision import STOP_FILE, StopAgreed, Supervisor


def train_command(argv: Sequence[str], prog: str) -> int:
    """`fastdeit train`: 0; exit code 2 for a command line, a data set or a checkpoint that cannot be used; 1 for images that
    cannot be read in mid-run, where --bad-images or their number ends it."""
    with one_line_errors():
        config, recipe = parse_config(argv, prog)
    folder, limits = Path(config.run.output_dir), config.limits.sections()
    with Supervisor(folder, limits, parse_time_limit(config.run.time_limit)) as supervisor, RunLock(folder) as lock:
        with one_line_errors():
            world = init_distributed(max(limits.values()) + 60)  # the watchdog speaks before the collectives' own time-out does
            supervisor.listen()
            run = _prepare(config, recipe, world, supervisor, lock)
        try:
            return 0 if run is None else _execute(run)
        except (CacheError, CheckpointError, DataError) as error:  # maybe on one rank; the launcher then ends the others
            supervisor.fail(error)
            print(f"fastdeit: error: {error}", file=sys.stderr)
            return supervisor.leave(1)


def _prepare(config: Config, recipe: str, world: World, supervisor: Supervisor, lock: RunLock) -> Run | None:
    """A run ready for its next step, with nothing written yet but the lock; None if it was finished before."""
    folder = Path(config.run.output_dir)
    check_same_everywhere(config)
    on_every_rank(lambda: check_config(config, world.size))
    on_every_rank(lambda: build.build_deepspeed_config(config, world))
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
        _open_folder(run)
        run.console.heading(_facts(run))
        run.mark = (time.monotonic(), run.trainer.step)
        train(run)
        _finish(run)
    except StopAgreed as reason:
        _stop(run, str(reason))
    finally:
        run.console.stop()
        run.train_loader.close()
        run.val_loader.close()
        run.checkpoints.close()
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


def _build_run(config: Config, recipe: str, world: World, folder: Path, supervisor: Supervisor) -> Run:
    indexes = build.build_data(config)
    (train_index, quarantine), (val_index, val_quarantine) = (build.build_quarantine(config, index) for index in indexes)
    plan = build.build_plan(config, train_index)
    steps_per_epoch = plan.steps_per_epoch(config.optim.batch_size)
    pixels = build.pipeline_options(config, world).describe()
    teacher = build.build_teacher(config, world, train_index.classes)
    replay = open_cache(config, plan, train_index, pixels, teacher) if config.distill.cache else None
    model, notes = build.build_model(config, len(train_index.classes))
    rates = getattr(model, "drop_path_rates", ())
    train_loader = build.build_train_loader(config, world, train_index, plan, rates, quarantine, replay)
    val_loader = build.build_eval_loader(config, world, val_index, val_quarantine)
    trainer = build.build_trainer(config, world, model, teacher, steps_per_epoch, replay)
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
        console=RunConsole(config.optim.epochs, steps_per_epoch, enabled=world.rank == 0),
        supervisor=supervisor,
        checkpoints=CheckpointWriter(folder / "checkpoints", config.run.keep_checkpoints, world.rank),
        notes=[*notes, *_left_out(train_index), *_left_out(val_index)],
    )


def _left_out(index: Index) -> list[str]:
    """A note on the images that the index does not take."""
    if not index.left_out:
        return []
    more = f" and {len(index.left_out) - 3} more" if len(index.left_out) > 3 else ""
    return [f"{len(index.left_out)} damaged images of {index.split} left out: {'; '.join(index.left_out[:3])}{more}"]


def _facts(run: Run) -> dict[str, str]:
    config, world, notes = run.config, run.world, run.notes
    device = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else "CPU"
    parameters = sum(parameter.numel() for parameter in run.trainer.shadow.parameters())  # ZeRO 3 empties the engine's
    stage = run.trainer.engine.zero_optimization_stage()
    teacher = run.trainer.teacher
    facts = {
        "run": f"{run.folder}  (recipe {run.recipe}, seed {config.run.seed})",
        "devices": f"{world.size} x {device}, {build.precision(config, world)[0]}, ZeRO {stage}",
        "data": f"{config.data.data_path}: {len(run.train_index):,} training and {len(run.val_index):,} validation images, "
        f"{len(run.train_index.classes)} classes, {config.data.input_size} px",
        "student" if teacher or run.replay else "model": f"{config.model.model}, {parameters / 1e6:.2f} M parameters",
        "augmentation": f"{config.augment.aa}, {run.train_loader.options.describe()}",
        "teacher": run.replay.describe() if run.replay else teacher.describe() if teacher else "none",
        "schedule": f"{config.optim.epochs} epochs of {run.steps_per_epoch} steps, batch {config.optim.batch_size}",
    }
    if stage != config.run.zero_stage:
        notes = [*notes, f"ZeRO {config.run.zero_stage} replaced by {stage}: the same maths, gradients summed in fp32"]
    return facts | {f"note {number}": note for number, note in enumerate(notes, 1)}


def _open_folder(run: Run) -> None:
    if run.world.rank == 0:
        run.notes += [tell(failure, run.folder) for failure in take_failures(run.folder)[:1]]
        sweep(run.folder / "checkpoints")
        aside = [path.name for path in set_aside(run.folder / "checkpoints", run.trainer.step)]
        run.notes += [f"later checkpoints set aside, not to be found again: {', '.join(aside)}"] if aside else []
        text = yaml.safe_dump(run.config.to_dict(), sort_keys=False)
        write_whole(run.folder / "config.yaml", text)
        if not (run.folder / build.IMAGES).is_file():
            keep_images(run.train_index, run.folder / build.IMAGES)
        run.log = MetricLog(run.folder, run.trainer.step)
    if run.replay and run.replay.bad_images:
        run.quarantine.add(run.replay.bad_images)
    dist.barrier()


def _resume(run: Run) -> None:
    found = find_checkpoint(run.folder, run.config.run.resume, run.trainer.layout())
    if found is None:
        return
    check_same_samples(found.state, run.fingerprints, found.path)
    run.trainer.load_state(found.tensors, found.state)
    run.checkpoints.take_scores(found.state)
    run.evaluated = found.state.get("evaluated", run.trainer.step)
    run.notes += [f"passed over: {fault}" for fault in found.passed_over]
    run.notes.append(f"goes on from {found.path}, after step {run.trainer.step} of {run.total_steps}")
    then, now = found.state.get("quarantine"), run.quarantine.fingerprint()
    if then not in (None, now):
        run.notes.append("images were found damaged, or their list was removed, since then: steps may hold other samples")


def _finish(run: Run) -> None:
    """Weights under timm's names, the last evaluation with the teacher, the picture, the table."""
    results = evaluate_run(run, with_teacher=True)
    run.supervisor.beat("checkpoint", run.trainer.step)
    weights, average = run.trainer.weights(), run.trainer.ema_weights()
    if run.world.rank == 0:
        about = build.weight_metadata(run.config, run.train_index, run.trainer.engine.module)
        save_file(weights, run.folder / "student.safetensors", about)
        if average is not None:
            save_file(average, run.folder / "student_ema.safetensors", about)
        _save_report(run)
        summary = {"results": results, "steps": run.trainer.step, "skipped": run.trainer.skipped}
        write_whole(run.folder / SUMMARY, json.dumps(summary, indent=1))  # the last file: its presence says that all went well
        show_summary(run.console, run.config, run.recipe, run.folder, results)
    meet()


def _save_report(run: Run) -> None:
    from fastdeit.visualize import save_report  # matplotlib imports slowly

    alone = dataclasses.replace(run.world, rank=0, size=1, local_size=1)
    few = run.config.replace(optim={"batch_size": min(16, len(run.train_index) // 2 * 2), "micro_batch": 0})
    loader = build.build_train_loader(few, alone, run.train_index, run.plan, (), run.quarantine)
    batch = next(loader.epoch(0))
    loader.close()
    images = mix(batch.images, batch.lam, batch.box)
    names = [run.train_index.classes[label] for label in batch.labels.tolist()]
    titles = [
        name if lam == 1 else f"{lam:.2f} {name} + {1 - lam:.2f} {names[row ^ 1]}"
        for row, (name, lam) in enumerate(zip(names, batch.lam.tolist(), strict=True))
    ]
    metrics = read_metrics(run.folder / "metrics.jsonl")
    save_report(run.folder / "report.png", metrics, images, titles, run.config.data.mean, run.config.data.std)
