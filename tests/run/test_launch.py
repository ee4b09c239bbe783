"""Runs under the real launcher: two processes give the run of one, an error ends both, and the
script finds the package from any folder."""

import json
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fastdeit.commands.runs.train import train_command
from fastdeit.report.predictions import read_predictions
from fastdeit.storage.jsonl import read_json_lines
from tests.support.images import write_shapes
from tests.support.launching import FLAGS, ROOT, clean_environment, launcher_command


def launch(processes: int, argv: list[str], cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run train.py under the launcher, which gives each rank the flag --local_rank."""
    launcher = launcher_command("--num_accelerators", str(processes))
    command = [*launcher, str(ROOT / "fastdeit" / "train.py"), *argv]
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, env=clean_environment(), timeout=300
    )


Runs = tuple[Path, Path, subprocess.CompletedProcess[str]]
"""The folders of a run in this process and of a launched one on two, and its launch."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    root = tmp_path_factory.mktemp("launch")
    data = write_shapes(root / "data")
    one, two = root / "one", root / "two"
    argv = ["--data-path", str(data), *FLAGS, "--output-dir"]
    assert train_command([*argv, str(one)]) == 0
    # from another folder: the script finds the package by itself
    end = launch(2, [*argv, str(two)], root)
    assert end.returncode == 0, end.stdout + end.stderr
    return one, two, end


def test_two_processes_give_the_losses_of_one(runs: Runs) -> None:
    one, two = (read_json_lines(folder / "metrics.jsonl") for folder in runs[:2])
    losses = [[line["loss"] for line in lines if "loss" in line] for lines in (one, two)]
    assert len(losses[0]) == 30
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert len(set(losses[0])) == 30
    left, right = (load_file(folder / "model.safetensors") for folder in runs[:2])
    for name, value in left.items():
        torch.testing.assert_close(right[name], value, rtol=1e-2, atol=1e-4)


@pytest.mark.slow
def test_run_of_two_processes_at_stage_2_resumes_with_one_at_stage_1(
    runs: Runs,
) -> None:
    """The stop is in mid-epoch; the losses are those of a run that was never stopped."""
    root = runs[0].parent
    argv = ["--data-path", str(root / "data"), *FLAGS, "--output-dir", str(root / "moved")]
    for processes, more in (
        (2, ["--zero-stage", "2", "--stop-after-steps", "16"]),
        (1, ["--zero-stage", "1"]),
    ):
        end = launch(processes, [*argv, *more])
        assert end.returncode == 0, end.stdout + end.stderr
    assert "after step 16 of 30" in end.stdout
    moved, whole = (
        read_json_lines(folder / "metrics.jsonl") for folder in (root / "moved", runs[0])
    )
    losses = [[line["loss"] for line in lines if "loss" in line] for lines in (moved, whole)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_accuracies_count_over_both_processes(
    runs: Runs,
) -> None:
    one, two = (json.loads((folder / "summary.json").read_text())["results"] for folder in runs[:2])
    # 9 images; rounding may change the class of one
    assert one == pytest.approx(two, abs=100 / 9 + 0.01)
    assert all(round(value * 9 / 100, 6) % 1 == 0 for value in two.values())


def test_predictions_hold_each_image_once_and_give_the_accuracies(runs: Runs) -> None:
    for folder in runs[:2]:
        found = read_predictions(folder / "predictions.parquet")
        results = json.loads((folder / "summary.json").read_text())["results"]
        assert found is not None and found.step == 30
        assert found.rows.tolist() == list(range(9))
        for name, classes in found.answers.items():
            hits = (classes == found.labels).mean()
            assert 100 * hits == pytest.approx(results[f"{name}/top1"]), name


def test_output_appears_once_without_warnings(
    runs: Runs,
) -> None:
    end = runs[2]
    assert end.stdout.count("schedule") == 1 and "2 x CPU, fp32, ZeRO 1" in end.stdout
    assert not [
        line
        for line in (end.stdout + end.stderr).splitlines()
        if "WARNING" in line or "INFO" in line or "Warning" in line
    ]


@pytest.mark.slow
def test_error_appears_once_and_ends_both_processes_with_2(tmp_path: Path) -> None:
    paths = ["--data-path", str(tmp_path / "nowhere"), "--output-dir", str(tmp_path / "run")]
    end = launch(2, [*FLAGS, *paths])
    assert end.returncode == 2
    assert end.stderr.count("must be an existing folder") == 1 and "Traceback" not in end.stderr
    assert not (tmp_path / "run").exists()
