"""The scores of finished runs of the ablation, as rows of the result files."""

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks.arms.settings import list_changes, name_run
from benchmarks.measuring import harness
from fastdeit.report.predictions import RecordedPredictions, read_predictions
from fastdeit.report.record import RunRecord, read_run
from fastdeit.storage.jsonl import read_json_lines
from fastdeit.storage.run_folder import RunFolder

COSTS = "costs.jsonl"
"""The file of the CPU seconds of each start, in the folder of the runs."""
CONDITIONS = ("data", "student", "batch", "epochs", "steps")
"""The columns that are equal in all runs of one ablation."""
COLUMNS = (
    *("date", "commit", "gpu", "cpu", *harness.PACKAGES),
    *CONDITIONS,
    *("arm", "seed", "weights", "head"),
    *("top1", "agreement", "cpu_s", "changes", "teacher_top1"),
)
"""The columns of a row. top1, teacher_top1: in percent; the latter is empty if the teacher was not
trained here. agreement: percent of the images to which the teacher gives the same class; empty if
its run has no predictions. cpu_s: CPU seconds of all starts of the run. changes: the settings that
differ from those of the base."""
CURVE = (*CONDITIONS, "arm", "seed", "weights", "step", "top1")


def append_scores(folder: Path, arm: str, seed: int, out: Path) -> None:
    """Append a finished run's scores to cpu-ablation.csv (on a GPU: cuda-ablation.csv), and its
    evaluations to the file of the curves, unless they are there."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    scores = out / f"{device}-ablation.csv"
    record = read_run(name_run(folder, arm, seed))
    base = read_run(name_run(folder, "base", seed))
    facts = describe_run(record, base) | {"arm": arm, "seed": seed}
    if has_rows(scores, facts):
        return
    # the curve first: after a stop between the two writes it is repeated, but never missing
    run = {name: facts[name] for name in (*CONDITIONS, "arm", "seed")}
    curve = (run | row for row in list_curve(record))
    harness.write_rows(out / f"{device}-ablation-curves.csv", curve, CURVE)
    costs = {"cpu_s": sum_costs(folder, record), "teacher_top1": read_teacher_top1(folder)}
    facts |= harness.environment(torch.device(device)) | costs
    teacher = read_predictions(RunFolder(folder / "teacher").predictions)
    harness.write_rows(scores, (facts | row for row in list_scores(record, teacher)), COLUMNS)


def has_rows(path: Path, facts: harness.Row) -> bool:
    """Return True if a result file has the scores of a run: of its arm, its seed and the same
    conditions."""
    if not path.is_file():
        return False
    own = {name: str(facts[name]) for name in ("arm", "seed", *CONDITIONS)}
    with path.open(newline="", encoding="utf-8") as file:
        return any(own.items() <= row.items() for row in csv.DictReader(file))


def describe_run(record: RunRecord, base: RunRecord) -> harness.Row:
    """Return the columns of a run's settings. Raises ValueError if a record has no settings, or the
    run is not finished, or has another number of steps than the base."""
    if record.settings is None or base.settings is None or not (record.summary and base.summary):
        raise ValueError(f"{record.name} must be a finished run, and {base.name} too")
    steps, wanted = record.summary["steps"], base.summary["steps"]
    if steps != wanted:
        raise ValueError(f"{record.name} must have the {wanted} steps of the base (got {steps})")
    model, optim = record.settings.model, record.settings.optim
    sizes = (model.patch_size, model.embed_dim, model.depth, model.num_heads)
    return {
        "data": Path(record.settings.data.data_path).name,
        "student": " ".join([base.settings.model.model, *map(str, filter(None, sizes))]),
        "batch": optim.batch_size,
        "epochs": optim.epochs,
        "steps": steps,
        "changes": list_changes(record.settings, base.settings),
    }


def list_scores(record: RunRecord, teacher: RecordedPredictions | None) -> Iterator[harness.Row]:
    """Yield the columns of each head of the model and of its EMA: accuracy and agreement with the
    teacher, in percent."""
    assert record.summary is not None
    for name, top1 in record.summary["results"].items():
        weights, head, measure = name.split("/")
        if measure == "top1" and weights != "teacher":
            agreement = find_agreement(record.predictions, teacher, f"{weights}/{head}")
            yield {"weights": weights, "head": head, "top1": top1, "agreement": agreement}


def find_agreement(
    student: RecordedPredictions | None, teacher: RecordedPredictions | None, head: str
) -> float | str:
    """Return the percent of the images to which the teacher gives the same class; "" without
    predictions of both for the same images."""
    if student is None or teacher is None or student.images != teacher.images:
        return ""
    answers = teacher.answers["model/both"]
    _, mine, theirs = np.intersect1d(student.rows, teacher.rows, return_indices=True)
    same = student.answers[head][mine] == answers[theirs]
    return round(100 * float(same.mean()), 2)


def list_curve(record: RunRecord) -> Iterator[harness.Row]:
    """Yield the validation accuracy of the model and of its EMA, over all heads, at each step."""
    for line in record.evaluations:
        for weights in ("model", "ema"):
            if (top1 := line.get(f"{weights}/both/top1")) is not None:
                yield {"weights": weights, "step": line["step"], "top1": top1}


def read_teacher_top1(folder: Path) -> float | str:
    """Return the accuracy in percent of the teacher that was trained here, or ""."""
    if not RunFolder(folder / "teacher").is_finished:
        return ""
    summary = read_run(folder / "teacher").summary
    return float(summary["results"]["model/both/top1"]) if summary else ""


def sum_costs(folder: Path, record: RunRecord) -> float:
    """Return the CPU seconds of all starts of a run."""
    costs = read_json_lines(folder / COSTS)
    return round(sum(line["cpu_s"] for line in costs if line["run"] == record.folder.path.name), 1)
