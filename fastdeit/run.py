"""A run from its `Config` to its end: check, build, resume, train, evaluate, save, show. Called by train.py and `fastdeit`."""

import dataclasses
import functools
import itertools
import json
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import yaml
from safetensors.torch import save_file
from timm.utils import distribute_bn
from torch import nn

from fastdeit import build
from fastdeit.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint, sweep
from fastdeit.cli import parse_config, report
from fastdeit.config import Config
from fastdeit.console import RunConsole
from fastdeit.data.index import Index
from fastdeit.data.loader import EvalLoader, TrainLoader
from fastdeit.distributed import World, all_agree, init_distributed
from fastdeit.engine import STATISTICS, Trainer
from fastdeit.evaluate import evaluate, student_heads
from fastdeit.kernels.mix import mix
from fastdeit.metrics import Meter, MetricLog, read_metrics
from fastdeit.plan import Plan

# fields that may differ when a run goes on: they change neither samples nor maths
_FREE = {
    "run": {
        "output_dir",
        "resume",
        "zero_stage",
        "save_steps",
        "keep_checkpoints",
        "eval_epochs",
        "log_steps",
        "stop_after_steps",
    },
    "data": {"num_workers", "data_path"},
    "optim": {"micro_batch"},
    "distill": {"teacher_path"},
}


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
    console: RunConsole
    log: MetricLog | None = None

    @property
    def steps_per_epoch(self) -> int:
        return self.train_loader.steps_per_epoch

    @property
    def total_steps(self) -> int:
        return self.config.optim.epochs * self.steps_per_epoch


def train_command(argv: Sequence[str], prog: str) -> int:
    """`fastdeit train`: the exit code, 2 for a command line or a data set that cannot be used."""

    def run() -> int:
        config, recipe = parse_config(argv, prog)
        return train(config, recipe, init_distributed())

    return report(run)


def train(config: Config, recipe: str, world: World) -> int:
    """Trains to the end, going on from the newest checkpoint of the run folder; 0 also when the run was finished before."""
    build.check_config(config, world.size)
    folder = Path(config.run.output_dir)
    _check_same_run(config, folder)
    if (folder / "summary.json").is_file():
        _say_finished(config, recipe, world, folder)
        return 0
    run = _build_run(config, recipe, world, folder)
    try:
        _resume(run)
        _open_folder(run)
        finished = _train(run)
        if finished:
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
    train_index, val_index = build.build_data(config)
    plan = build.build_plan(config, train_index)
    steps_per_epoch = plan.steps_per_epoch(config.optim.batch_size)
    teacher = build.build_teacher(config, world, train_index.classes)
    model, notes = build.build_model(config, len(train_index.classes))
    rates = getattr(model, "drop_path_rates", ())
    train_loader = build.build_train_loader(config, world, train_index, plan, rates)
    val_loader = build.build_eval_loader(config, world, val_index)
    trainer = build.build_trainer(config, world, model, teacher, steps_per_epoch)
    console = RunConsole(config.optim.epochs, steps_per_epoch, enabled=world.rank == 0)
    run = Run(config, recipe, world, folder, train_index, val_index, plan, trainer, train_loader, val_loader, console)
    console.heading(_facts(run, model, notes))
    return run


def _facts(run: Run, model: nn.Module, notes: Sequence[str]) -> dict[str, str]:
    config, world = run.config, run.world
    device = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else "CPU"
    parameters = sum(parameter.numel() for parameter in model.parameters())
    stage = run.trainer.engine.zero_optimization_stage()
    teacher = run.trainer.teacher
    facts = {
        "run": f"{run.folder}  (recipe {run.recipe}, seed {config.run.seed})",
        "devices": f"{world.size} x {device}, {build.precision(config, world)[0]}, ZeRO {stage}",
        "data": f"{config.data.data_path}: {len(run.train_index):,} training and {len(run.val_index):,} validation images, "
        f"{len(run.train_index.classes)} classes, {config.data.input_size} px",
        "student" if teacher else "model": f"{config.model.model}, {parameters / 1e6:.2f} M parameters",
        "teacher": teacher.describe() if teacher else "none",
        "schedule": f"{config.optim.epochs} epochs of {run.steps_per_epoch} steps, batch {config.optim.batch_size}",
    }
    if stage != config.run.zero_stage:
        notes = [*notes, f"ZeRO {config.run.zero_stage} replaced by {stage}: the same maths, gradients summed in fp32"]
    return facts | {f"note {number}": note for number, note in enumerate(notes, 1)}


def _identity(values: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {
        f"{section}.{name}": value
        for section, fields in values.items()
        for name, value in fields.items()
        if name not in _FREE.get(section, ())
    }


def _check_same_run(config: Config, folder: Path) -> None:
    """Raises ValueError naming the settings in which a run folder that is in use differs."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output-dir: {folder} is a file, allowed is a folder or a new name")
    if not (folder / "config.yaml").is_file():
        return
    then = _identity(yaml.safe_load((folder / "config.yaml").read_text()))
    now = _identity(config.to_dict())
    changed = [f"{name} {then.get(name)!r} -> {now.get(name)!r}" for name in now if then.get(name) != now[name]]
    if changed:
        raise ValueError(f"--output-dir: {folder} holds a run with other settings: {'; '.join(changed)}; name another folder")


def _open_folder(run: Run) -> None:
    if run.world.rank == 0:
        run.folder.mkdir(parents=True, exist_ok=True)
        sweep(run.folder / "checkpoints")
        text = yaml.safe_dump(run.config.to_dict(), sort_keys=False)
        (run.folder / "config.yaml").write_text(text)
        run.log = MetricLog(run.folder, run.trainer.step)
    dist.barrier()


def _resume(run: Run) -> None:
    path = _checkpoint_to_resume(run)
    if path is not None:
        tensors, state = load_checkpoint(path)
        _check_same_data(run, state, path)
        run.trainer.load_state(tensors, state)
        run.console.note(f"goes on from {path}, after step {run.trainer.step} of {run.total_steps}")


def _checkpoint_to_resume(run: Run) -> Path | None:
    """Rank 0 chooses and all take its choice: --resume as it is, else the newest whole checkpoint of the run folder."""
    if run.config.run.resume:
        return Path(run.config.run.resume)
    choice: list[Path | None] = [None]
    if run.world.rank == 0:
        choice[0], complaints = newest_checkpoint(run.folder / "checkpoints")
        for complaint in complaints:
            run.console.note(f"passed over: {complaint}")
    dist.broadcast_object_list(choice)
    return choice[0]


def _check_same_data(run: Run, state: dict[str, Any], path: Path) -> None:
    for name, now in _fingerprints(run).items():
        if state.get(name) != now:
            raise ValueError(f"{path}: was saved with another {name}: {state.get(name)}, now {now}")


def _fingerprints(run: Run) -> dict[str, Any]:
    return {
        "plan": run.plan.fingerprint(),
        "data set": run.train_index.fingerprint(),
        "batch size": run.config.optim.batch_size,
    }


def _train(run: Run) -> bool:
    """The loop; False if it was told to stop before the end."""
    trainer, meter, first = run.trainer, Meter(), run.trainer.step
    mark = (time.monotonic(), first)
    while trainer.step < run.total_steps:
        epoch, step = divmod(trainer.step, run.steps_per_epoch)
        batches = run.train_loader.epoch(epoch, step)
        for _ in range(step, run.steps_per_epoch):
            meter.add(trainer.train_step(itertools.islice(batches, run.train_loader.micro_steps)))
            ends_epoch = trainer.step % run.steps_per_epoch == 0
            if trainer.step % run.config.run.log_steps == 0 or ends_epoch:
                mark = _log_step(run, meter, mark)
            if ends_epoch:
                _end_epoch(run, epoch)
                mark = (time.monotonic(), trainer.step)
            stop = run.config.run.stop_after_steps
            stopping = bool(stop) and trainer.step - first >= stop
            every = run.config.run.save_steps
            if ends_epoch or stopping or (every and trainer.step % every == 0):
                _save(run)
            if stopping and trainer.step < run.total_steps:
                return False
    return True


def _log_step(run: Run, meter: Meter, mark: tuple[float, int]) -> tuple[float, int]:
    """Reads the meter, the loop's one host synchronisation. mark: when and after which step it was read before."""
    trainer, means = run.trainer, dict(zip(STATISTICS, meter.read(), strict=True))
    now = (time.monotonic(), trainer.step)
    rate = (now[1] - mark[1]) * run.config.optim.batch_size / (now[0] - mark[0])
    run.console.step(trainer.step, loss=means["loss"], lr=trainer.lr, images_per_s=rate)
    if run.log is not None:
        run.log.write(trainer.step, means | {"lr": trainer.lr, "images_per_s": rate, "skipped": trainer.skipped})
    return now


def _end_epoch(run: Run, epoch: int) -> None:
    last = epoch + 1 == run.config.optim.epochs
    if not last and (epoch + 1) % run.config.run.eval_epochs:
        return
    results = _evaluate(run, with_teacher=False)
    if run.log is not None:
        run.log.write(run.trainer.step, results)
    scores = "  ".join(
        f"{name.removesuffix('/both/top1')} {value:.2f} %" for name, value in results.items() if "both/top1" in name
    )
    run.console.note(f"epoch {epoch + 1}/{run.config.optim.epochs}  validation top-1: {scores}")


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
        facts = _fingerprints(run) | {"config": run.config.to_dict(), "versions": _versions(), "world_size": run.world.size}
        try:
            save_checkpoint(run.folder / "checkpoints", state["step"], tensors, state | facts, run.config.run.keep_checkpoints)
        except OSError as failure:
            error = failure
            run.console.note(f"checkpoint of step {state['step']} not saved: {failure}")
    if not all_agree(error is None) and run.trainer.step >= run.total_steps:
        raise OSError(f"the last checkpoint could not be saved in {run.folder}") from error


@functools.cache
def _versions() -> dict[str, str]:
    names = ("fastdeit", "torch", "timm", "deepspeed", "nvidia-dali-cuda120", "triton", "numpy")
    found = {dist.metadata["Name"].lower(): dist.version for dist in metadata.distributions() if dist.metadata["Name"]}
    return {"python": platform.python_version()} | {name: found.get(name, "") for name in names}


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
        _show_summary(run.console, run.config, run.recipe, run.folder, results)
    dist.barrier()


def _save_report(run: Run) -> None:
    from fastdeit.visualize import save_report  # matplotlib imports slowly

    alone = dataclasses.replace(run.world, rank=0, size=1, local_size=1)
    few = run.config.replace(optim={"batch_size": min(16, len(run.train_index) // 2 * 2), "micro_batch": 0})
    loader = build.build_train_loader(few, alone, run.train_index, run.plan, ())
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


def _say_finished(config: Config, recipe: str, world: World, folder: Path) -> None:
    console = RunConsole(1, 1, enabled=world.rank == 0)
    console.note(f"{folder} holds this run, finished; remove it or name another --output-dir to train again")
    _show_summary(console, config, recipe, folder, json.loads((folder / "summary.json").read_text())["results"])


def _show_summary(console: RunConsole, config: Config, recipe: str, folder: Path, results: dict[str, float]) -> None:
    files = {"weights (timm's names)": folder / "student.safetensors", "picture": folder / "report.png"}
    console.summary(results, files, _next_command(config, recipe, folder))


def _next_command(config: Config, recipe: str, folder: Path) -> str:
    if recipe == "digits_teacher":
        return "deepspeed fastdeit/train.py --recipe digits"
    if recipe == "digits":
        return "deepspeed fastdeit/train.py --recipe digits --distillation-type none --output-dir runs/digits_alone"
    if config.distill.distillation_type == "none" and config.model.model not in build.SIZES:
        weights = folder / "student.safetensors"
        return (
            f"deepspeed fastdeit/train.py --data-path {config.data.data_path} "
            f"--teacher-model {config.model.model} --teacher-path {weights}"
        )
    return f"tensorboard --logdir {folder / 'tensorboard'}"
