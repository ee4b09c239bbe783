"""The conditions that each stage must meet at its end."""

import csv
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.imagenet.commands import packed, predictions, resumed, whole
from benchmarks.imagenet.job import Job
from benchmarks.imagenet.watch import Cost
from fastdeit.storage.jsonl import read_json_lines
from fastdeit.storage.run_folder import RunFolder

Facts = dict[str, Any]
_RECORDING = (0.2, 0.97)
"""The shares of the time between which the memory of recording is flat: before, DALI's buffers
grow; after, a job writes its results."""
_LARGEST_SEEN = 0.5
"""The share of a training's steps after which DALI's buffers have grown to the largest images."""
_CLOSE = 1e-3
"""The largest relative difference of losses: sums over two processes round differently."""
IMAGENET = {"steps": 1251, "images with 3 copies": 427_010, "images with 2 copies": 640_513}
"""The counts of an epoch at full size: deit's arithmetic, with two images more, see
docs/rehearsal.md."""


def read_facts(name: str, job: Job) -> Facts:
    """Return the facts that a task wrote."""
    return dict(json.loads((job.folder / "facts" / f"{name}.json").read_text()))


def facts_of(name: str) -> Any:
    return partial(_facts_of, name)


def _facts_of(name: str, job: Job, _: Cost) -> Facts:
    return read_facts(name, job)


def check_plan(job: Job, _: Cost) -> Facts:
    """Check deit's arithmetic at full size."""
    facts = read_facts("plan", job)
    if job.scale == 1:
        assert {name: facts[name] for name in IMAGENET} == IMAGENET, facts
    return facts


def check_cache(job: Job, _: Cost) -> Facts:
    """Check that the cache has two bytes for each sample of the epoch."""
    size = (job.cache / "records.bin").stat().st_size
    assert size == 2 * (job.images // 2 * 2), f"{size} bytes are not two a sample"
    return {"bytes": size}


def check_epoch(job: Job, cost: Cost) -> Facts:
    """Check that the samples were those of the plan; compare the time of a step in the first and
    the last tenth of this stage."""
    lines = _own_lines(job, cost)
    facts = {"step": lines[-1]["step"], "last tenth / first": _compare_tenths(lines, cost)}
    if facts["step"] == job.steps:
        planned = read_facts("plan", job)["digest of epoch 0"]
        assert lines[-1]["digest"] == planned, "other samples than planned"
        facts["digest"] = planned
    return facts


def swing_of_recording(_: Job, cost: Cost) -> float:
    """Return the swing of the memory of recording, in percent."""
    return cost.swing_pct(*map(cost.time_at, _RECORDING))


def swing_of_training(job: Job, cost: Cost) -> float:
    """Return the swing of the memory of training, in percent, without its start and the evaluation
    at its end."""
    times = [line["time"] for line in _own_lines(job, cost)]
    return cost.swing_pct(times[int(_LARGEST_SEEN * len(times))], times[-1])


def _own_lines(job: Job, cost: Cost) -> list[dict[str, Any]]:
    """Return the lines of steps that the run logged in this stage."""
    lines = [line for line in read_json_lines(RunFolder(job.run).metrics) if "digest" in line]
    return [line for line in lines if line["time"] > cost.moments[0, 0]]


def _compare_tenths(mine: Sequence[dict[str, Any]], cost: Cost) -> float:
    """Return the CPU time of a step in the last tenth of the lines, divided by that in the
    first."""
    steps = np.array([line["step"] for line in mine])
    rates = np.diff(cost.cpu_at([line["time"] for line in mine])) / np.diff(steps)
    if len(rates) < 2:
        return 1.0
    count = max(len(rates) // 10, 1)
    # the first line has the warm-up
    return round(float(rates[-count:].mean() / rates[1 : 1 + count].mean()), 3)


def check_stretch(job: Job, _: Cost) -> Facts:
    """Check that a run that was stopped and resumed has the digest and the losses of the whole."""
    losses, others = _losses(whole(job)), _losses(resumed(job))
    assert losses.keys() == others.keys(), "other steps"
    largest = max(abs(others[step] / losses[step] - 1) for step in losses)
    assert largest < _CLOSE, f"losses differ by {largest:.2g}"
    assert _digest(whole(job)) == _digest(resumed(job)), "other samples"
    return {"largest difference of losses": float(f"{largest:.2g}"), "steps": len(losses)}


def _losses(folder: Path) -> dict[int, float]:
    """Return the loss of each step, by step."""
    found: dict[int, float] = {}
    for line in read_json_lines(RunFolder(folder).metrics):
        columns = line.get("by_step")
        found |= dict(zip(columns["step"], columns["loss"], strict=True)) if columns else {}
    return found


def _digest(folder: Path) -> str:
    lines = read_json_lines(RunFolder(folder).metrics)
    return str([line["digest"] for line in lines if "digest" in line][-1])


def check_evaluation(ranks: int) -> Any:
    return partial(_check_evaluation, ranks)


def _check_evaluation(ranks: int, job: Job, _: Cost) -> Facts:
    """Check that each image is evaluated once, and that one and two processes predict the same
    classes."""
    rows = _read_predictions(job, ranks)
    names = {row["image"] for row in rows}
    assert len(rows) == len(names) == job.validation, f"{len(rows)} rows, {len(names)} images"
    alone = _read_predictions(job, 1)
    pairs = zip(rows, alone, strict=True)
    return {"images": len(rows), "equal to one process": sum(a == b for a, b in pairs)}


def _read_predictions(job: Job, ranks: int) -> list[dict[str, str]]:
    """Return the rows by image, without the confidence."""
    with predictions(job, ranks).open(newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: row["image"])
    return [
        {name: cell for name, cell in row.items() if not name.endswith("confidence")}
        for row in rows
    ]


def check_pack(job: Job, _: Cost) -> Facts:
    """Check that every image was packed."""
    manifest = json.loads((packed(job) / "pack.json").read_text())
    images = sum(record["images"] for record in manifest["files"])
    assert images == job.images + job.validation, f"{images} images packed"
    return {"images": images}
