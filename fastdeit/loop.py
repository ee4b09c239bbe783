"""A run while it trains: what is alive, the loop over its steps, and what is due after one: log, evaluation, checkpoint."""

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from timm.utils import distribute_bn

from fastdeit.cache_check import count_missed
from fastdeit.checkpoint_writer import CheckpointWriter
from fastdeit.config import Config
from fastdeit.console import RunConsole
from fastdeit.data.index import Index
from fastdeit.data.loader import EvalBatch, EvalLoader, TrainLoader
from fastdeit.data.quarantine import Quarantine
from fastdeit.distributed import World
from fastdeit.engine import STATISTICS, Trainer
from fastdeit.evaluate import evaluate, student_heads
from fastdeit.identity import fingerprints, versions
from fastdeit.metrics import Meter, MetricLog
from fastdeit.models.cache import Replay
from fastdeit.plan import Plan
from fastdeit.supervision import StopAgreed, Supervisor


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
    replay: Replay | None
    console: RunConsole
    supervisor: Supervisor
    checkpoints: CheckpointWriter
    notes: list[str] = field(default_factory=list)
    """What a person should know of how the parts were made to fit."""
    log: MetricLog | None = None
    meter: Meter = field(default_factory=Meter)
    mark: tuple[float, int] = (0.0, 0)
    """When, and after which step, the rate was last measured."""
    evaluated: int = 0
    """The step of the last evaluation."""
    saved: int = -1
    """The step of the last checkpoint of this process."""

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


def train(run: Run) -> None:
    """The loop. Raises StopAgreed, with a checkpoint of the last step written, if it was told to stop before the end."""
    trainer, last = run.trainer, run.trainer.step + run.config.run.stop_after_steps
    try:
        _end_epoch(run)  # a stop may have cut the evaluation off
        while trainer.step < run.total_steps:
            epoch, step = divmod(trainer.step, run.steps_per_epoch)
            batches = run.train_loader.epoch(epoch, step)
            for _ in range(step, run.steps_per_epoch):
                micro_batches = itertools.islice(batches, run.train_loader.micro_steps)
                run.meter.add(trainer.train_step(run.supervisor.watched("step", trainer.step, micro_batches)))
                _after_step(run)
                if trainer.step == last < run.total_steps:
                    raise StopAgreed("--stop-after-steps")
    except StopAgreed:
        if run.saved != trainer.step:
            _save(run)
        _wait_for_checkpoint(run)
        raise
    _wait_for_checkpoint(run)


def _after_step(run: Run) -> None:
    """Whatever is due after an optimizer step: a line of the log, an evaluation, a checkpoint."""
    step, every = run.trainer.step, run.config.run
    _tell_of_checkpoints(run)
    ends_epoch = step % run.steps_per_epoch == 0
    if step % every.log_steps == 0 or ends_epoch:
        _log_step(run)
    run.supervisor.check()
    _end_epoch(run)
    if ends_epoch or (every.save_steps and step % every.save_steps == 0):
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
    """Steps that were skipped, images that any rank has found bad, and samples that --cache had no answer to."""
    return {"skipped": run.trainer.skipped, "quarantined": run.quarantine.count_all()} | count_missed(run.replay)


def _end_epoch(run: Run) -> None:
    """Evaluates if it is due: at the end of an epoch, once."""
    epoch, rest = divmod(run.trainer.step, run.steps_per_epoch)
    due = not rest and (epoch == run.config.optim.epochs or epoch % run.config.run.eval_epochs == 0)
    if not due or run.evaluated == run.trainer.step:
        return
    results = evaluate_run(run, with_teacher=False)
    run.evaluated = run.trainer.step
    if run.log is not None:
        run.log.write(run.trainer.step, results)
    scores = {name.removesuffix("/both/top1"): score for name, score in results.items() if name.endswith("/both/top1")}
    text = "  ".join(f"{name} {score:.2f} %" for name, score in scores.items())
    run.checkpoints.scores[run.trainer.step] = scores.get("ema", scores["model"])
    run.console.note(f"epoch {epoch}/{run.config.optim.epochs}  validation top-1: {text}")


def evaluate_run(run: Run, with_teacher: bool) -> dict[str, float]:
    """As `evaluate`, of model, average and teacher. Raises StopAgreed between two batches."""
    trainer = run.trainer
    run.supervisor.beat("evaluation", trainer.step)
    if run.world.size > 1:
        distribute_bn(trainer.engine.module, run.world.size, reduce=True)
    models = {"model": student_heads(trainer.module())}
    average = trainer.ema_module()
    if average is not None:
        models["ema"] = student_heads(average)
    if with_teacher and trainer.teacher is not None:
        teacher = trainer.teacher
        models["teacher"] = lambda images: {"both": teacher(images)}
    return evaluate(models, _validation_batches(run), trainer.dtype)


def _validation_batches(run: Run) -> Iterator[EvalBatch]:
    for batch in run.supervisor.watched("evaluation", run.trainer.step, iter(run.val_loader)):
        run.supervisor.check()
        yield batch


def _save(run: Run) -> None:
    """Begins to write a checkpoint, with the score of the evaluation at this step if there was one."""
    run.supervisor.beat("checkpoint", run.trainer.step)
    tensors, state = run.trainer.state()
    run.checkpoints.save(tensors, state | run.fingerprints | _about(run))
    run.saved = run.trainer.step


def _about(run: Run) -> dict[str, Any]:
    """What a checkpoint tells of its run beside what training goes on from."""
    step = run.trainer.step
    return {
        "epoch": step // run.steps_per_epoch,
        "samples": step * run.config.optim.batch_size,
        "evaluated": run.evaluated,
        "quarantine": run.quarantine.fingerprint(),
        "world_size": run.world.size,
        "config": run.config.to_dict(),
        "versions": versions(),
    }


def _wait_for_checkpoint(run: Run) -> None:
    run.supervisor.beat("checkpoint", run.trainer.step)
    run.checkpoints.wait()
    _tell_of_checkpoints(run)


def _tell_of_checkpoints(run: Run) -> None:
    """Notes on saves that went wrong."""
    for line in run.checkpoints.lines():
        run.console.note(line)
