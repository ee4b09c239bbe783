"""step.json: what a step came to now, beside what the run recorded of it."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import torch

from fastdeit.plan.digest import add_digests, show_digest
from fastdeit.reliability.bad_steps import BadStep
from fastdeit.reliability.health import Spike
from fastdeit.replay.record import Record
from fastdeit.replay.samples import Samples
from fastdeit.replay.step import StepResult
from fastdeit.training.trainer import LOSSES

Line = dict[str, Any]
_WORST = 3  # samples of a micro-batch that are named in the table


def report(
    record: Record, samples: Samples, origin: Line, taken: StepResult, parts: Sequence[Line]
) -> Line:
    """Everything about the step as plain values.

    origin: how it was come to; taken: by this process; parts: of each process its micro-batches,
    samples and digest.
    """
    micro_batches = [line for part in parts for line in part["micro_batches"]]
    lines = [line for part in parts for line in part["samples"]]
    digest = add_digests(*(part["digest"] for part in parts))
    epoch, place = divmod(record.step, samples.steps_per_epoch)
    recorded = _recorded(record, samples, digest)
    return {
        "run": str(record.folder),
        "step": record.step,
        "epoch": epoch,
        "step_of_epoch": place,
        "state": {"from": origin["from"], "trained": origin["trained"]},
        "processes": {
            "run": record.attempt.world_size,
            "replay": len(parts),
            "micro_batch": record.attempt.micro_batch,
        },
        "now": _means(micro_batches, record.attempt.world_size)
        | {
            "grad_norm": taken.grad_norm,
            "lr": taken.lr,
            "skipped": taken.skipped,
            "digest": show_digest(digest),
        },
        "recorded": recorded,
        "micro_batches": [_micro_batch(line, lines, record.bad_step) for line in micro_batches],
        "samples": lines,
        "notes": [*origin["notes"], *_notes(record, recorded, len(parts))],
    }


def _means(micro_batches: Sequence[Line], world_size: int) -> dict[str, float]:
    """The losses over all ranks: `Trainer`'s mean over the micro-batches of each, `Meter`'s over
    ranks; fp32, bit for bit."""
    values = torch.tensor(
        [[line[name] for name in LOSSES] for line in micro_batches], dtype=torch.float32
    )
    ranks = [rank.mean(0) / world_size for rank in values.chunk(world_size)]
    return dict(zip(LOSSES, functools.reduce(torch.add, ranks).tolist(), strict=True))


def _micro_batch(line: Line, samples: Sequence[Line], bad_step: BadStep | None) -> Line:
    rank, place = line["rank"], line["micro_batch"]
    own = [sample for sample in samples if (sample["rank"], sample["micro_batch"]) == (rank, place)]
    finite = [sample for sample in own if sample["loss"] == sample["loss"]]
    odd = [sample for sample in own if sample["loss"] != sample["loss"]]
    worst = [*odd, *sorted(finite, key=lambda sample: -sample["loss"])][:_WORST]
    recorded = {} if bad_step is None else {"recorded": bad_step.losses[rank][place]}
    return (
        line
        | recorded
        | {
            "worst": [
                {name: sample[name] for name in ("ordinal", "image", "loss")} for sample in worst
            ]
        }
    )


def _recorded(record: Record, samples: Samples, digest: int) -> Line:
    """What the folder tells of the step; values: those that are of it alone."""
    line, first = record.metrics_line()
    alone = line is not None and (first, line["step"]) == (record.step, record.step + 1)
    values = line if alone else _as_line(record.spike)
    known = (
        None
        if values is None
        else {name: values[name] for name in (*LOSSES, "grad_norm", "lr") if name in values}
    )
    compared = _compare_digests(record, samples, digest)
    return {
        "values": known,
        "skipped": True if record.bad_step is not None else False if known else None,
        "digest": compared,
        "same_samples": None if compared is None else compared["recorded"] == compared["now"],
        "metrics": line,
        "means_are_of_steps": None if line is None else [first, line["step"]],
        "bad_step": _as_line(record.bad_step),
        "spike": _as_line(record.spike),
        "passed_over_later": record.was_rolled_back,
    }


def _as_line(record: BadStep | Spike | None) -> Line | None:
    """Return a record as it stands in its file."""
    return None if record is None else dataclasses.asdict(record)


def _compare_digests(record: Record, samples: Samples, digest: int) -> Line | None:
    """The recorded digest of the fewest steps about this one that the folder has, and what it comes
    to now."""
    if record.bad_step is not None and record.bad_step.digest:
        return {
            "steps": [record.step, record.step + 1],
            "recorded": record.bad_step.digest,
            "now": show_digest(digest),
        }
    window = record.window()
    if window is None:
        return None
    others = (
        step
        for step in range(window.first, window.last)
        if step != record.step and not record.skipped_now(step)
    )
    now = add_digests(digest, *(samples.digest(step) for step in others))
    return {
        "steps": [window.first, window.last],
        "recorded": show_digest(window.digest),
        "now": show_digest(now),
    }


def _notes(record: Record, recorded: Line, processes: int) -> list[str]:
    """What a person should know of how far the step is the run's."""
    then, means = record.attempt.world_size, recorded["means_are_of_steps"]
    told = {
        "the samples are not those that the run had: an image failed only for a moment, the list of bad images was changed, or "
        "this is another version": recorded["same_samples"] is False,
        "no digest is recorded on both sides of this step: nothing shows that the samples are the run's": (
            recorded["same_samples"] is None
        ),
        f"the run had {then} processes, here are {processes}: gradients are summed in another order": processes
        != then,
        "the run went back and passed over this step later: this is how it was before": record.was_rolled_back,
        f"the log has means of steps {means} only; --log-steps 1 has a line for each": (
            means is not None and recorded["values"] is None
        ),
    }
    return [note for note, holds in told.items() if holds]
