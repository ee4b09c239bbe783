"""A run from its `Config` to its end: check, build, resume, train, evaluate, save, show. Called by train.py and `fastdeit`."""

import dataclasses
import itertools
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import yaml
from safetensors.torch import save_file
from timm.utils import distribute_bn

from fastdeit import build
from fastdeit.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint, sweep
from fastdeit.cli import one_line_errors, parse_config
from fastdeit.config import Config
from fastdeit.console import RunConsole
from fastdeit.data.index import DataError, Index
from fastdeit.data.loader import EvalLoader, TrainLoader
from fastdeit.data.quarantine import Quarantine
from fastdeit.data.snapshot import keep_images
from fastdeit.distributed import World, all_agree, init_distributed
from fastdeit.engine import STATISTICS, Trainer
from fastdeit.evaluate import evaluate, student_heads
from fastdeit.identity import check_same_run, check_same_samples, fingerprints, versions
from fastdeit.kernels.mix import mix
from fastdeit.metrics import Meter, MetricLog, read_metrics
from fastdeit.outcome import say_finished, show_summary
from fastdeit.plan import Plan


@dataclass
class Run:
    """Everything that is alive during training."""

    config: Config
    recipe: str
    world: World
    folder: Path
    train_index: Index
    val_index: Index
    plan: Plan
    trainer: Trainer
    train_loader: TrainLoader
    val_loader: EvalLoader
    quarantine: Quarantine
    console: RunConsole
    notes: list[str] = field(default_factory=list)
    """What a person should know of how the parts were made to fit."""
    log: MetricLog | None = None
    meter: Meter = field(default_factory=Meter)
    mark: tuple[float, int] = (0.0, 0)
    """When, and after which step, the rate was last measured."""

    @property
    def fingerprints(self) -> dict[str, Any]:
        pixels = self.train_loader.options.describe()
        return fingerprints(self.plan, self.train_index, self.config.optim.batch_size, pixels)

    @property
    def steps_per_epoch(self) -> int:
        return self.train_loader.steps_per_epoch

    @property
    def total_steps(self) -> int:
        return self.config.optim.epochs * self.steps_per_epoch


def train_command(argv: Sequence[str], prog: str) -> int:
    """`fastdeit train`: 0; exit code 2 for a command line, a data set or a checkpoint that cannot be used; 1 for images that
    cannot be read in mid-run, where --bad-images or their number ends it."""
    with one_line_errors():
        config, recipe = parse_config(argv, prog)
        run = _prepare(config, recipe, init_distributed())
    try:
        return 0 if run is None else _execute(run)
    except DataError as error:  # on one rank; the launcher then ends the others
        print(f"fastdeit: error: {error}", file=sys.stderr)
        return 1


def _prepare(config: Config, recipe: str, world: World) -> Run | None:
    """A run ready for its next step, with nothing written yet; None if it was finished before."""
    build.check_config(config, world.size)
    folder = Path(config.run.output_dir)
    check_same_run(config, folder)
    if (folder / "summary.json").is_file():
        say_finished(config, recipe, world, folder)
        return None
    run = _build_run(config, recipe, world, folder)
    _resume(run)
    return run


def _execute(run: Run) -> int:
    """Trains from where the run stands to its end, or to where it was told to stop."""
    try:
        _open_folder(run)
        run.console.heading(_facts(run))
        run.mark = (time.monotonic(), run.trainer.step)
        if _train(run):
            _finish(run)
        else:
            run.console.note(f"stopped after step {run.trainer.step} of {run.total_steps}; the same command goes on from there")
    finally:
        run.console.stop()
        run.train_loader.close()
        run.val_loader.close()
        if run.log is not None:
            run.log.close()
        run.trainer.engine.destroy()
    return 0


def _build_run(config: Config, recipe: str, world: World, folder: Path) -> Run:
    indexes = build.build_data(config)
    (train_index, quarantine), (val_index, val_quarantine) = (build.build_quarantine(config, index) for index in indexes)
    plan = build.build_plan(config, train_index)
    steps_per_epoch = plan.steps_per_epoch(config.optim.batch_size)
    teacher = build.build_teacher(config, world, train_index.classes)
    model, notes = build.build_model(config, len(train_index.classes))
    rates = getattr(model, "drop_path_rates", ())
    train_loader = build.build_train_loader(config, world, train_index, plan, rates, quarantine)
    val_loader = build.build_eval_loader(config, world, val_index, val_quarantine)
    trainer = build.build_trainer(config, world, model, teacher, steps_per_epoch)
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
        console=RunConsole(config.optim.epochs, steps_per_epoch, enabled=world.rank == 0),
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
    parameters = sum(parameter.numel() for parameter in run.trainer.engine.module.parameters())
    stage = run.trainer.engine.zero_optimization_stage()
    teacher = run.trainer.teacher
    facts = {
        "run": f"{run.folder}  (recipe {run.recipe}, seed {config.run.seed})",
        "devices": f"{world.size} x {device}, {build.precision(config, world)[0]}, ZeRO {stage}",
        "data": f"{config.data.data_path}: {len(run.train_index):,} training and {len(run.val_index):,} validation images, "
        f"{len(run.train_index.classes)} classes, {config.data.input_size} px",
        "student" if teacher else "model": f"{config.model.model}, {parameters / 1e6:.2f} M parameters",
        "augmentation": f"{config.augment.aa}, {run.train_loader.options.describe()}",
        "teacher": teacher.describe() if teacher else "none",
        "schedule": f"{config.optim.epochs} epochs of {run.steps_per_epoch} steps, batch {config.optim.batch_size}",
    }
    if stage != config.run.zero_stage:
        notes = [*notes, f"ZeRO {config.run.zero_stage} replaced by {stage}: the same maths, gradients summed in fp32"]
    return facts | {f"note {number}": note for number, note in enumerate(notes, 1)}


def _open_folder(run: Run) -> None:
    if run.world.rank == 0:
        run.folder.mkdir(parents=True, exist_ok=True)
        sweep(run.folder / "checkpoints")
        text = yaml.safe_dump(run.config.to_dict(), sort_keys=False)
        (run.folder / "config.yaml").write_text(text)
        if not (run.folder / build.IMAGES).is_file():
            keep_images(run.train_index, run.folder / build.IMAGES)
        run.log = MetricLog(run.folder, run.trainer.step)
    dist.barrier()


def _resume(run: Run) -> None:
    path = _checkpoint_to_resume(run)
    if path is not None:
        tensors, state = load_checkpoint(path)
        check_same_samples(state, run.fingerprints, path)
        run.trainer.load_state(tensors, state)
        run.notes.append(f"goes on from {path}, after step {run.trainer.step} of {run.total_steps}")


def _checkpoint_to_resume(run: Run) -> Path | None:
    """Rank 0 chooses and all take its choice: --resume as it is, else the newest whole checkpoint of the run folder."""
    if run.config.run.resume:
        return Path(run.config.run.resume)
    choice: list[Path | None] = [None]
    if run.world.rank == 0:
        choice[0], complaints = newest_checkpoint(run.folder / "checkpoints")
        run.notes += [f"passed over: {complaint}" for complaint in complaints]
    dist.broadcast_object_list(choice)
    return choice[0]


def _train(run: Run) -> bool:
    """The loop; False if it was told to stop before the end."""
    trainer, first = run.trainer, run.trainer.step
    while trainer.step < run.total_steps:
        epoch, step = divmod(trainer.step, run.steps_per_epoch)
        batches = run.train_loader.epoch(epoch, step)
        for _ in range(step, run.steps_per_epoch):
            run.meter.add(trainer.train_step(itertools.islice(batches, run.train_loader.micro_steps)))
            stopping = trainer.step - first == run.config.run.stop_after_steps
            _after_step(run, stopping)
            if stopping and trainer.step < run.total_steps:
                return False
    return True


def _after_step(run: Run, stopping: bool) -> None:
    """Whatever is due after an optimizer step: a line of the log, an evaluation, a checkpoint."""
    step, every = run.trainer.step, run.config.run
    ends_epoch = step % run.steps_per_epoch == 0
    if step % every.log_steps == 0 or ends_epoch:
        _log_step(run)
    if ends_epoch:
        _end_epoch(run, step // run.steps_per_epoch)
    if ends_epoch or stopping or (every.save_steps and step % every.save_steps == 0):
        _save(run)
        run.mark = (time.monotonic(), step)  # the rate is that of training


def _log_step(run: Run) -> None:
    """Reads the meter, the loop's one host synchronisation of our own."""
    trainer, means = run.trainer, dict(zip(STATISTICS, run.meter.read(), strict=True))
    now = (time.monotonic(), trainer.step)
    rate = (now[1] - run.mark[1]) * run.config.optim.batch_size / (now[0] - run.mark[0])
    run.mark = now
    run.console.step(trainer.step, loss=means["loss"], lr=trainer.lr, images_per_s=rate)
    if run.log is not None:
        run.log.write(trainer.step, means | _counters(run) | {"lr": trainer.lr, "images_per_s": rate})


def _counters(run: Run) -> dict[str, float]:
    """Steps that were skipped, and images that any rank has found bad."""
    return {"skipped": run.trainer.skipped, "quarantined": run.quarantine.count_all()}


def _end_epoch(run: Run, epoch: int) -> None:
    """Evaluates when it is due; epoch: how many are done."""
    if epoch < run.config.optim.epochs and epoch % run.config.run.eval_epochs:
        return
    results = _evaluate(run, with_teacher=False)
    if run.log is not None:
        run.log.write(run.trainer.step, results)
    scores = {name.removesuffix("/both/top1"): score for name, score in results.items() if name.endswith("/both/top1")}
    text = "  ".join(f"{name} {score:.2f} %" for name, score in scores.items())
    run.console.note(f"epoch {epoch}/{run.config.optim.epochs}  validation top-1: {text}")


def _evaluate(run: Run, with_teacher: bool) -> dict[str, float]:
    trainer = run.trainer
    module = trainer.engine.module.eval()
    if run.world.size > 1:
        distribute_bn(module, run.world.size, reduce=True)
    models = {"model": student_heads(module)}
    average = trainer.ema_module()
    if average is not None:
        models["ema"] = student_heads(average)
    if with_teacher and trainer.teacher is not None:
        teacher = trainer.teacher
        models["teacher"] = lambda images: {"both": teacher(images)}
    return evaluate(models, run.val_loader, trainer.dtype)


def _save(run: Run) -> None:
    """A checkpoint; a disk that refuses is reported and training goes on, unless it was the run's last."""
    tensors, state = run.trainer.state()
    error = None
    if run.world.rank == 0:
        facts = run.fingerprints | {"config": run.config.to_dict(), "versions": versions(), "world_size": run.world.size}
        try:
            save_checkpoint(run.folder / "checkpoints", state["step"], tensors, state | facts, run.config.run.keep_checkpoints)
        except OSError as failure:
            error = failure
            run.console.note(f"checkpoint of step {state['step']} not saved: {failure}")
    if not all_agree(error is None) and run.trainer.step >= run.total_steps:
        raise OSError(f"the last checkpoint could not be saved in {run.folder}") from error


def _finish(run: Run) -> None:
    """Weights under timm's names, the last evaluation with the teacher, the picture, the table."""
    results = _evaluate(run, with_teacher=True)
    weights, average = run.trainer.weights(), run.trainer.ema_weights()
    if run.world.rank == 0:
        about = build.weight_metadata(run.config, run.train_index, run.trainer.engine.module)
        save_file(weights, run.folder / "student.safetensors", about)
        if average is not None:
            save_file(average, run.folder / "student_ema.safetensors", about)
        _save_report(run)
        summary = {"results": results, "steps": run.trainer.step, "skipped": run.trainer.skipped}
        (run.folder / "summary.json").write_text(json.dumps(summary, indent=1))
        show_summary(run.console, run.config, run.recipe, run.folder, results)
    dist.barrier()


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
