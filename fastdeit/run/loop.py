"""The training loop, and what is due after a step: log, comparison, evaluation, checkpoint."""

import itertools
import math
from collections.abc import Iterator
from typing import Any

from timm.utils import distribute_bn

from fastdeit.checkpoint.store import step_of
from fastdeit.data.loaders.batch import Batch
from fastdeit.data.loaders.evaluation import EvalBatch
from fastdeit.data.loaders.train import TrainLoader
from fastdeit.display.terminal import note_failure
from fastdeit.models.execution.compilation import run_uncompiled
from fastdeit.plan.digest import show_digest
from fastdeit.reliability.health import HealthError, summarise
from fastdeit.reliability.replica_check import compare_weights
from fastdeit.reliability.supervisor import StopAgreed
from fastdeit.run.report import save_predictions
from fastdeit.run.resume import roll_back
from fastdeit.run.state import Run, is_evaluated
from fastdeit.teacher_cache.check import count_missed
from fastdeit.tracking.log import list_by_step
from fastdeit.tracking.samples import show_samples
from fastdeit.training.evaluation import ClassRecorder, evaluate, student_heads
from fastdeit.training.memory.peak import read_peak_memory


def train(run: Run) -> None:
    """Train to the last step. Raise StopAgreed, with a checkpoint of the last step written, if the
    ranks agree to stop before."""
    trainer = run.trainer
    # 0 means never, not this step: a rollback may return to it
    after = run.config.run.stop_after_steps
    stop_at = trainer.step + after if after else run.total_steps
    batches = StepBatches(run.data.train_loader, run.config.optim.epochs)
    try:
        compare_replicas(run)
        evaluate_if_due(run)  # a stop may have interrupted the evaluation
        while (step := trainer.step) < run.total_steps:
            if step in run.health.rollbacks:
                skip_step(run)
            elif not train_step(run, batches.of(step)):
                log_step(run)  # for a run that cannot roll back and so ends here
                roll_back(run)
                continue
            after_step(run)
            if trainer.step == stop_at < run.total_steps:
                raise StopAgreed("--stop-after-steps")
    except StopAgreed:
        if run.progress.last_saved_step != trainer.step:
            save_checkpoint(run)
        wait_for_checkpoint(run)
        raise
    wait_for_checkpoint(run)


class StepBatches:
    """The micro-batches of any step. A loader reads ahead within an epoch; it is started again only
    where the order of steps breaks: at a new epoch, after a rollback, after skipped steps.

    epochs: those of the run; no batch is made beyond them, as the end of the run would wait for it.
    """

    def __init__(self, loader: TrainLoader, epochs: int) -> None:
        self._loader = loader
        self._epochs = epochs
        self._epoch: Iterator[Batch] = iter(())
        self._next_step = -1

    def of(self, step: int) -> Iterator[Batch]:
        """Return the micro-batches of a step."""
        epoch, place = divmod(step, self._loader.steps_per_epoch)
        if step != self._next_step or place == 0:
            is_last = epoch + 1 == self._epochs
            self._epoch = self._loader.epoch(epoch, place, is_last=is_last)
        self._next_step = step + 1
        return itertools.islice(self._epoch, self._loader.micro_steps)


def train_step(run: Run, micro_batches: Iterator[Batch]) -> bool:
    """Train one step. Return False if more than --max-bad-steps in a row were skipped."""
    trainer = run.trainer
    step = trainer.step
    waited = run.progress.time_waits(micro_batches)
    if step == 0 and run.trackers.started:
        waited = send_samples(run, waited)
    statistics = trainer.train_step(run.supervisor.timed("step", step, waited))
    run.progress.meter.add(step, trainer.lr, statistics)
    run.progress.launched.append(trainer.last)
    settle(run, leave=1)
    # no step is launched after one that may be the last bad one before a rollback
    most = run.config.health.max_bad_steps
    if len(run.health.bad) >= most:
        settle(run)
    return len(run.health.bad) <= most


def send_samples(run: Run, batches: Iterator[Batch]) -> Iterator[Batch]:
    """Yield the batches of a step; send the samples of the first one to the trackers, which waits
    for the device."""
    batch = next(batches)
    data = run.config.data
    classes = run.data.train_index.classes
    with note_failure("the first samples for the trackers", run.console.note):
        run.trackers.send("on_images", 0, *show_samples(batch, classes, data.mean, data.std))
    yield batch
    del batch  # so that its memory is free while the next one is waited for
    yield from batches


def settle(run: Run, leave: int = 0) -> None:
    """Record of all launched steps whether they were skipped, except for the `leave` newest, which
    the device may not have finished. A collective; waits for the steps that it records."""
    launched = run.progress.launched
    while len(launched) > leave:
        step = launched.popleft()
        if step.applied:
            run.health.bad.clear()
        else:
            run.health.note_bad(step.step, step.micro_steps, run.data.train_index.name)


def skip_step(run: Run) -> None:
    """Skip a step that a rollback has excluded."""
    settle(run)
    run.trainer.skip_step()
    run.progress.restart_clock(run.trainer.step)


def after_step(run: Run) -> None:
    """Do what is due after an optimizer step, on every rank in the same order."""
    step = run.trainer.step
    config = run.config
    checksum_steps = config.health.checksum_steps
    save_steps = config.checkpoint.save_steps
    report_saves(run)
    if checksum_steps and step % checksum_steps == 0:
        compare_replicas(run)
    ends_epoch = step % run.steps_per_epoch == 0
    if step % config.run.log_steps == 0 or ends_epoch:
        log_step(run)
    run.supervisor.check()
    evaluate_if_due(run)
    if ends_epoch or (save_steps and step % save_steps == 0):
        save_checkpoint(run)
        if run.progress.last_evaluated_step == step:
            run.report.start()
        run.progress.restart_clock(step)


def compare_replicas(run: Run) -> None:
    """Raise HealthError on every rank unless all hold the same weights."""
    settle(run)
    step = run.trainer.step
    progress = run.progress
    enabled = run.world.size > 1 and run.config.health.checksum_steps
    if not enabled or progress.last_compared_step == step:
        return
    run.supervisor.beat("step", step)
    difference = compare_weights(run.trainer.state.model)
    if difference is None:
        progress.last_compared_step = step
        return
    last = progress.last_compared_step
    since = f"all were equal after step {last}, and at every checkpoint up to then; "
    raise HealthError(
        f"after step {step} {difference}; {since if last >= 0 else ''}"
        "the same command resumes from the newest checkpoint; "
        "if it happens again, replace the device"
    )


def log_step(run: Run) -> None:
    """Write a line of the log, with means over the steps since the last line, and the values of
    each. A collective that waits for the device."""
    settle(run)
    trainer = run.trainer
    steps = run.progress.meter.read()
    applied = [run.health.note_applied(one.step, one.values) for one in steps if one.applied]
    means = summarise(applied, run.config.optim.clip_grad)
    data_wait = round(run.progress.wait_share(), 4)
    images_per_s = run.progress.rate(trainer.step) * run.config.optim.batch_size
    utilisation = run.utilisation.rate(images_per_s)
    seconds_left = run.estimate_seconds_left()
    for line in trainer.graphs.take_notes() if trainer.graphs else []:
        run.console.note(line)
    rates = {"lr": trainer.lr, "images_per_s": images_per_s, "data_wait": data_wait} | utilisation
    rates |= read_peak_memory(run.world.device)
    if seconds_left is not None:
        rates["seconds_left"] = round(seconds_left)
    run.console.step(trainer.step, {"loss": math.nan} | means | rates)
    run.log.write(trainer.step, means | _count(run) | rates | list_by_step(steps))
    run.progress.last_logged_step = trainer.step


def _count(run: Run) -> dict[str, Any]:
    """Return skipped steps, images that any rank has found bad, the digest of all samples so far,
    and samples missing in --cache. A collective."""
    return {
        "skipped": run.trainer.state.skipped,
        "quarantined": run.data.quarantine.count_all(),
        "digest": show_digest(run.trainer.state.gather_digest()),
        **count_missed(run.data.cached_teacher, run.data.train_loader.unrecorded),
    }


def evaluate_if_due(run: Run) -> None:
    """Evaluate, if this was not done yet, at the end of every --eval-epochs epochs and of the last
    epoch."""
    step = run.trainer.step
    epochs = run.config.optim.epochs
    epoch, place = divmod(step, run.steps_per_epoch)
    is_due = place == 0 and is_evaluated(run.config, epoch)
    if not is_due or run.progress.last_evaluated_step == step:
        return
    settle(run)
    with run.progress.pace.timed("evaluation"):
        results = evaluate_run(run, with_teacher=False)
    run.progress.last_evaluated_step = step
    run.log.write_evaluation(step, results)
    suffix = "/both/top1"
    scores = {
        name.removesuffix(suffix): score for name, score in results.items() if name.endswith(suffix)
    }
    run.checkpoints.scores[step] = scores.get("ema", scores["model"])
    text = "  ".join(f"{name} {score:.2f} %" for name, score in scores.items())
    run.console.note(f"epoch {epoch}/{epochs}  validation top-1: {text}")


def evaluate_run(run: Run, with_teacher: bool) -> dict[str, float]:
    """Evaluate model, EMA and teacher as `evaluate` does; write the predictions.

    Raise StopAgreed, between two batches, if the ranks agree to stop.
    """
    trainer = run.trainer
    run.supervisor.beat("evaluation", trainer.step)
    run.data.val_loader.quarantine.step = trainer.step
    if run.world.size > 1:
        distribute_bn(trainer.state.model, run.world.size, reduce=True)
    models = {"model": student_heads(trainer.state.module())}
    ema = trainer.state.ema_module()
    if ema is not None:
        models["ema"] = student_heads(ema)
    if with_teacher and trainer.teacher is not None:
        teacher = trainer.teacher
        models["teacher"] = lambda images: {"both": teacher(images)}
    recorder = ClassRecorder()
    with run_uncompiled():
        batches = _validation_batches(run)
        results = evaluate(models, batches, trainer.state.dtype, recorder.add)
    save_predictions(run, recorder)
    return results


def _validation_batches(run: Run) -> Iterator[EvalBatch]:
    batches = iter(run.data.val_loader)
    for batch in run.supervisor.timed("evaluation", run.trainer.step, batches):
        run.supervisor.check()
        yield batch


def save_checkpoint(run: Run) -> None:
    """Start to write a checkpoint, in the background. A collective.

    The line of the log is written first, so that the log has every step of a run that resumes from
    here.
    """
    settle(run)
    step = run.trainer.step
    if run.progress.last_logged_step != step:
        log_step(run)
    run.supervisor.beat("checkpoint", step)
    compare_replicas(run)
    with run.progress.pace.timed("checkpoint"):
        tensors, state = run.trainer.state.gather()
        run.checkpoints.save(tensors, state | run.describe(step))
    run.progress.last_saved_step = step


def wait_for_checkpoint(run: Run) -> None:
    """Wait for the last checkpoint. Raise CheckpointError on every rank if it was not saved."""
    run.supervisor.beat("checkpoint", run.trainer.step)
    run.checkpoints.wait()
    report_saves(run)


def report_saves(run: Run) -> None:
    """Note the faults of the saves that have ended; send their checkpoints to the trackers."""
    for line in run.checkpoints.take_warnings():
        run.console.note(line)
    for path in run.checkpoints.take_saved():
        run.trackers.send("on_checkpoint", step_of(path), path)
