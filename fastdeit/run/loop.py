"""A run while it trains: the loop over its steps, and what is due after one: log, comparison,
evaluation, checkpoint."""

import itertools
import math
import time
from collections.abc import Iterator
from typing import Any

from timm.utils import distribute_bn

from fastdeit.data.batch import Batch
from fastdeit.data.eval_loader import EvalBatch
from fastdeit.plan.digest import show_digest
from fastdeit.reliability.health import HealthError, summarise
from fastdeit.reliability.replica_check import compare_weights
from fastdeit.reliability.supervisor import StopAgreed
from fastdeit.run.resume import flush_meter, roll_back
from fastdeit.run.state import Run
from fastdeit.teacher_cache.check import count_missed
from fastdeit.training.evaluation import evaluate, student_heads


def train(run: Run) -> None:
    """The loop. Raises StopAgreed, with a checkpoint of the last step written, if it was told to
    stop before the end."""
    trainer, last = run.trainer, run.trainer.step + run.config.run.stop_after_steps
    try:
        _compare_weights(run)
        _end_epoch(run)  # a stop may have cut the evaluation off
        for micro_batches in _steps(run):
            if micro_batches is None:
                _pass_over(run)
            elif not _train_step(run, micro_batches):
                roll_back(run)
                continue
            _after_step(run)
            if trainer.step == last < run.total_steps:
                raise StopAgreed("--stop-after-steps")
    except StopAgreed:
        if run.saved != trainer.step:
            _save(run)
        _wait_for_checkpoint(run)
        raise
    _wait_for_checkpoint(run)


def _steps(run: Run) -> Iterator[Iterator[Batch] | None]:
    """The micro-batches of each step, wherever the run stands when it asks for them, to its end;
    None: to be passed over."""
    batches: Iterator[Batch] = iter(())
    ready = -1
    while (step := run.trainer.step) < run.total_steps:
        if step in run.health.rollbacks:
            yield None
            continue
        if step != ready or step % run.steps_per_epoch == 0:
            batches = run.train_loader.epoch(*divmod(step, run.steps_per_epoch))
        ready = step + 1
        yield itertools.islice(batches, run.train_loader.micro_steps)


def _train_step(run: Run, micro_batches: Iterator[Batch]) -> bool:
    """Whether training can go on: not after more than --max-bad-steps skipped in a row."""
    trainer, step = run.trainer, run.trainer.step
    run.quarantine.step = step
    values = trainer.train_step(run.supervisor.timed("step", step, micro_batches))
    if trainer.applied:
        run.meter.add(step, values)
        run.health.bad.clear()
    else:
        run.health.note_bad(step, trainer.micro_steps, run.train_index.name)
    return len(run.health.bad) <= run.config.run.max_bad_steps


def _pass_over(run: Run) -> None:
    run.trainer.skip_step()
    run.mark = (time.monotonic(), run.trainer.step)


def _compare_weights(run: Run) -> None:
    """Raises HealthError on every rank unless all have the same weights."""
    step = run.trainer.step
    if run.world.size == 1 or not run.config.run.checksum_steps or run.compared == step:
        return
    run.supervisor.beat("step", step)
    difference = compare_weights(run.trainer.state.model)
    if difference is not None:
        then = (
            f"all were equal after step {run.compared}, and at every checkpoint up to then; "
            if run.compared >= 0
            else ""
        )
        again = "the same command goes on from the newest checkpoint; a device to which this happens again is faulty"
        raise HealthError(f"after step {step} {difference}; {then}{again}")
    run.compared = step


def _after_step(run: Run) -> None:
    """Whatever is due after an optimizer step: a line of the log, an evaluation, a checkpoint."""
    step, every = run.trainer.step, run.config.run
    _tell_of_checkpoints(run)
    if every.checksum_steps and step % every.checksum_steps == 0:
        _compare_weights(run)
    ends_epoch = step % run.steps_per_epoch == 0
    if step % every.log_steps == 0 or ends_epoch:
        _log_step(run)
    run.supervisor.check()
    _end_epoch(run)
    if ends_epoch or (every.save_steps and step % every.save_steps == 0):
        _save(run)
        run.mark = (time.monotonic(), step)  # the rate is that of training


def _log_step(run: Run) -> None:
    trainer, means = run.trainer, summarise(flush_meter(run), run.config.optim.clip_grad)
    now = (time.monotonic(), trainer.step)
    rate = (now[1] - run.mark[1]) * run.config.optim.batch_size / (now[0] - run.mark[0])
    run.mark = now
    run.console.step(
        trainer.step, loss=means.get("loss", math.nan), lr=trainer.lr, images_per_s=rate
    )
    counters = _counters(run)
    if run.log is not None:
        run.log.write(trainer.step, means | counters | {"lr": trainer.lr, "images_per_s": rate})


def _counters(run: Run) -> dict[str, Any]:
    """Steps that were skipped, images that any rank has found bad, the digest of all samples so
    far, and how many of them --cache had no answer to. A collective."""
    counts = {"skipped": run.trainer.state.skipped, "quarantined": run.quarantine.count_all()}
    return (
        counts
        | {"digest": show_digest(run.trainer.state.gather_digest())}
        | count_missed(run.cached_teacher)
    )


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
    scores = {
        name.removesuffix("/both/top1"): score
        for name, score in results.items()
        if name.endswith("/both/top1")
    }
    text = "  ".join(f"{name} {score:.2f} %" for name, score in scores.items())
    run.checkpoints.scores[run.trainer.step] = scores.get("ema", scores["model"])
    run.console.note(f"epoch {epoch}/{run.config.optim.epochs}  validation top-1: {text}")


def evaluate_run(run: Run, with_teacher: bool) -> dict[str, float]:
    """As `evaluate`, of model, average and teacher. Raises StopAgreed between two batches."""
    trainer = run.trainer
    run.supervisor.beat("evaluation", trainer.step)
    if run.world.size > 1:
        distribute_bn(trainer.state.model, run.world.size, reduce=True)
    models = {"model": student_heads(trainer.state.module())}
    average = trainer.state.ema_module()
    if average is not None:
        models["ema"] = student_heads(average)
    if with_teacher and trainer.teacher is not None:
        teacher = trainer.teacher
        models["teacher"] = lambda images: {"both": teacher(images)}
    return evaluate(models, _validation_batches(run), trainer.state.dtype)


def _validation_batches(run: Run) -> Iterator[EvalBatch]:
    for batch in run.supervisor.timed("evaluation", run.trainer.step, iter(run.val_loader)):
        run.supervisor.check()
        yield batch


def _save(run: Run) -> None:
    """Begins to write a checkpoint, with the score of the evaluation at this step if there was one."""
    run.supervisor.beat("checkpoint", run.trainer.step)
    _compare_weights(run)
    tensors, state = run.trainer.state.gather()
    run.checkpoints.save(tensors, state | run.fingerprints | run.about(run.trainer.step))
    run.saved = run.trainer.step


def _wait_for_checkpoint(run: Run) -> None:
    run.supervisor.beat("checkpoint", run.trainer.step)
    run.checkpoints.wait()
    _tell_of_checkpoints(run)


def _tell_of_checkpoints(run: Run) -> None:
    """Notes on saves that went wrong."""
    for line in run.checkpoints.lines():
        run.console.note(line)
