"""step.json: the result of a step run again, beside what the run recorded of it."""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from fastdeit.plan.digest import add_digests, show_digest
from fastdeit.replay.history import Metrics, StepHistory
from fastdeit.replay.results import (
    DigestComparison,
    MicroBatchResult,
    Now,
    Origin,
    ProcessResult,
    Recorded,
    Report,
    SampleResult,
)
from fastdeit.replay.samples import Samples
from fastdeit.replay.step import Losses, StepResult
from fastdeit.tracking.log import find_step
from fastdeit.training.trainer import STATISTICS, average_micro_batches

_WORST = 3  # samples of a micro-batch that are named in the table


def build_report(
    history: StepHistory,
    samples: Samples,
    origin: Origin,
    result: StepResult,
    parts: Sequence[ProcessResult],
) -> Report:
    """Return the report of a step from the results of all processes, `parts`; result: that of this
    process."""
    micro_batches = [line for part in parts for line in part.micro_batches]
    all_samples = [sample for part in parts for sample in part.samples]
    digest = add_digests(*(part.digest for part in parts))
    epoch, step_of_epoch = divmod(history.step, samples.steps_per_epoch)
    recorded = _compare_with_record(history, samples, digest)
    run_size = history.attempt.world_size
    means = _average(micro_batches, history)
    now = Now(
        **dataclasses.asdict(means),
        grad_norm=result.grad_norm,
        lr=result.lr,
        skipped=result.skipped,
        digest=show_digest(digest),
    )
    return Report(
        run=str(history.folder),
        step=history.step,
        epoch=epoch,
        step_of_epoch=step_of_epoch,
        origin=origin,
        processes={
            "run": run_size,
            "replay": len(parts),
            "micro_batch": history.attempt.micro_batch,
        },
        now=now,
        recorded=recorded,
        micro_batches=[_describe(line, all_samples, history) for line in micro_batches],
        samples=all_samples,
        notes=[*origin.notes, *_write_notes(history, recorded, len(parts))],
    )


def _average(micro_batches: Sequence[MicroBatchResult], history: StepHistory) -> Losses:
    """Return the losses over all ranks, in the order of additions of the run, fp32, bit for bit:
    `Trainer` averages over a rank's micro-batches, `Meter` over ranks."""
    run_size = history.attempt.world_size
    values = [[line.loss, line.base, line.distill] for line in micro_batches]
    by_rank = torch.tensor(values, dtype=torch.float32).chunk(run_size)
    shares = [average_micro_batches(rank.unbind()) / run_size for rank in by_rank]
    return Losses(*functools.reduce(torch.add, shares).tolist())


def _describe(
    line: MicroBatchResult, samples: Sequence[SampleResult], history: StepHistory
) -> dict[str, Any]:
    """Return a micro-batch with its recorded loss, if any, and the worst of its samples."""
    rank, number = line.rank, line.micro_batch
    own = [sample for sample in samples if (sample.rank, sample.micro_batch) == (rank, number)]
    worst = sorted(own, key=_order_by_loss)[:_WORST]
    values = dataclasses.asdict(line)
    if history.bad_step is not None:
        values["recorded"] = history.bad_step.losses[rank][number]
    values["worst"] = [
        {"ordinal": sample.ordinal, "image": sample.image, "loss": sample.loss} for sample in worst
    ]
    return values


def _order_by_loss(sample: SampleResult) -> tuple[bool, float]:
    """Return a key that sorts samples by descending loss, NaN first."""
    is_number = not math.isnan(sample.loss)
    return is_number, -sample.loss if is_number else 0.0


def _compare_with_record(history: StepHistory, samples: Samples, digest: int) -> Recorded:
    line, first = history.metrics_line()
    covered = None if line is None else (first, line["step"])
    digests = _compare_digests(history, samples, digest)
    values = _recorded_values(history, line, covered)
    return Recorded(
        values=values,
        skipped=_recorded_skip(history, values),
        digest=digests,
        same_samples=None if digests is None else digests.recorded == digests.now,
        metrics=line,
        means_are_of_steps=covered,
        bad_step=None if history.bad_step is None else dataclasses.asdict(history.bad_step),
        spike=None if history.spike is None else dataclasses.asdict(history.spike),
        passed_over_later=history.was_rolled_back,
    )


def _recorded_skip(history: StepHistory, values: Mapping[str, float] | None) -> bool | None:
    if history.bad_step is not None:
        return True
    return None if values is None else not all(map(math.isfinite, values.values()))


def _recorded_values(
    history: StepHistory, line: Metrics | None, covered: tuple[int, int] | None
) -> dict[str, float] | None:
    """Return the statistics of this step alone, or None if there are none.

    The log of an older version has them only in a line that covers no other step; then spikes.jsonl
    may have them.
    """
    values: Mapping[str, Any] | None = None if line is None else find_step(line, history.step)
    if values is None and covered == (history.step, history.step + 1):
        values = line
    if values is None and history.spike is not None:
        values = dataclasses.asdict(history.spike)
    if values is None:
        return None
    return {name: values[name] for name in (*STATISTICS, "lr") if name in values}


def _compare_digests(
    history: StepHistory, samples: Samples, digest: int
) -> DigestComparison | None:
    """Compare the recorded hash of the fewest steps around this one with that of the plan now."""
    if history.bad_step is not None and history.bad_step.digest:
        steps = (history.step, history.step + 1)
        return DigestComparison(steps, history.bad_step.digest, show_digest(digest))
    window = history.window()
    if window is None:
        return None
    digests = [digest]
    for step in range(window.first, window.last):
        if step != history.step and not history.skipped_now(step):
            digests.append(samples.digest(step))
    steps = (window.first, window.last)
    return DigestComparison(steps, show_digest(window.digest), show_digest(add_digests(*digests)))


def _write_notes(history: StepHistory, recorded: Recorded, processes: int) -> list[str]:
    """Return notes on what limits the comparison with the run."""
    notes = []
    if recorded.same_samples is False:
        notes.append(
            "the samples are not those of the run: an image could not be read for a moment, "
            "the list of bad images was changed, or this is another version"
        )
    if recorded.same_samples is None:
        notes.append(
            "the log has no digest on both sides of this step: nothing shows that the samples "
            "are those of the run"
        )
    run_size = history.attempt.world_size
    if processes != run_size:
        notes.append(
            f"the run had {run_size} processes, here are {processes}: gradients are summed in "
            "another order"
        )
    if history.was_rolled_back:
        notes.append("the run rolled back and skipped this step later: this is how it was before")
    covered = recorded.means_are_of_steps
    if covered is not None and recorded.values is None:
        notes.append(
            f"the log has means over the steps {covered[0]} to {covered[1] - 1} only, as an older "
            "version wrote it"
        )
    return notes
