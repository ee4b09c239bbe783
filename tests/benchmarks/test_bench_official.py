"""The runs of both trainers: their order and their rows; the first step, also with deit itself."""

import argparse
import os
import sys
from pathlib import Path

import pytest
import timm
import torch

from benchmarks import bench_official
from benchmarks.bench_official import COLUMNS, Job, list_done, list_jobs
from benchmarks.measuring import harness
from benchmarks.official.commands import TEACHER
from benchmarks.official.first_step import (
    CLASSES,
    compare_first_step,
    compute_step,
    make_batch,
    spread_labels,
)
from benchmarks.official.runs import Usage
from benchmarks.tables import read_rows

CHECKOUT = os.environ.get("FASTDEIT_TEST_DEIT", "")
PYTHON = os.environ.get("FASTDEIT_TEST_DEIT_PYTHON", "")
UNNAMED = (
    "FASTDEIT_TEST_DEIT and FASTDEIT_TEST_DEIT_PYTHON must name deit's checkout and its Python"
)


def arguments(folder: Path) -> argparse.Namespace:
    given = {"deit": folder, "python": Path(sys.executable), "folder": folder, "out": folder}
    return argparse.Namespace(**given, images=256, val_images=100, epochs=3, seeds=2, jobs=2)


def test_both_trainers_run_in_turns() -> None:
    jobs = list_jobs(6, 3)
    assert [job.impl for job in jobs] == ["deit", "fastdeit"] * 4
    assert [(job.seed, job.epochs) for job in jobs[::2]] == [(0, 2), (0, 6), (1, 6), (2, 6)]


def test_a_run_that_has_a_row_does_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = arguments(tmp_path)
    monkeypatch.setattr(bench_official, "run_command", lambda command, output: Usage(9.0, 12.0))
    monkeypatch.setattr(bench_official, "read_our_top1", lambda output: 50.0)
    monkeypatch.setattr(bench_official, "read_deit_top1", lambda output: 40.0)
    assert not list(list_done(args))
    jobs = [Job("deit", 1, 3), Job("fastdeit", 1, 3)]
    bench_official.measure(jobs, args, harness.environment(torch.device("cpu")))
    assert sorted(list_done(args)) == jobs
    rows = read_rows("cpu-official", tmp_path)
    assert {(row["impl"], row["top1"], row["updates"]) for row in rows} == {
        ("deit", "40.0", "24"),
        ("fastdeit", "50.0", "24"),
    }
    assert set(rows[0]) == set(COLUMNS)
    args.images = 512
    assert not list(list_done(args))


def test_a_failed_run_does_not_keep_the_others_from_their_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_job(job: Job, _: argparse.Namespace) -> harness.Row:
        if job.impl == "deit":
            raise RuntimeError("deit ended with 1")
        return {**job._asdict(), "train_images": 256, "val_images": 100, "top1": 1, "cpu_s": 1}

    monkeypatch.setattr(bench_official, "run_job", run_job)
    args = arguments(tmp_path)
    args.jobs = 1
    with pytest.raises(RuntimeError, match="ended with 1"):
        bench_official.measure(list_jobs(3, 1), args, {})
    assert [job.impl for job in list_done(args)] == ["fastdeit", "fastdeit"]


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_the_first_step_has_a_gradient_of_every_weight(kind: str) -> None:
    torch.manual_seed(1)
    batch = make_batch()
    step = compute_step(kind, batch, torch.randn(len(batch[0]), CLASSES))
    assert step["loss"].isfinite() and len(step) > 50
    assert all(gradient.abs().max() > 0 for gradient in step.values())


def test_targets_are_shared_as_the_pixels_are() -> None:
    targets = spread_labels(torch.tensor([2, 5]), torch.tensor([0.75, 0.75]))
    assert targets.sum(1) == pytest.approx(1)
    assert targets[0, [2, 5]] == pytest.approx([0.685, 0.235])
    assert targets[1, [2, 5]] == pytest.approx([0.235, 0.685])


@pytest.mark.slow
@pytest.mark.skipif(not (CHECKOUT and PYTHON), reason=UNNAMED)
def test_the_first_step_is_deits(tmp_path: Path) -> None:
    torch.manual_seed(3)
    teacher = timm.create_model(TEACHER, num_classes=CLASSES)
    torch.save({"model": teacher.state_dict()}, tmp_path / "teacher.pth")
    worst = compare_first_step(Path(CHECKOUT), Path(PYTHON), tmp_path)
    assert worst.keys() == {"hard", "soft"} and max(worst.values()) < 1e-5
