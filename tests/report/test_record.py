"""The record of a run: whole, of an older version, torn, damaged, or none."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from fastdeit.config.schema import Config
from fastdeit.report.predictions import RecordedPredictions, write_predictions
from fastdeit.report.record import read_run
from fastdeit.storage.attempts import Attempt, add_attempt
from fastdeit.storage.jsonl import replace_lines
from fastdeit.storage.run_folder import RunFolder
from tests.support.launching import ROOT

ATTEMPT = Attempt(
    step=0,
    world_size=2,
    micro_batch=2,
    zero_stage=1,
    offload_optimizer=False,
    precision="fp32",
    augment_backend="exact",
    decoder="cpu",
    recipe="digits",
    time=5.0,
    versions={"torch": "2.11.0"},
)
LINES: list[dict[str, Any]] = [
    {"step": 2, "lr": 0.1, "loss": 1.5, "by_step": {"step": [0, 1], "loss": [2.0, "inf"]}},
    {"step": 2, "model/both/top1": 50.0, "model/both/top5": 90.0},
    {"step": 3, "lr": 0.2, "loss": 1.0, "by_step": {"step": [2], "loss": [1.0], "lr": [0.2]}},
]
PREDICTIONS = RecordedPredictions(
    step=2,
    images="f00d",
    classes=("a", "b"),
    rows=np.array([0, 2], np.int32),
    labels=np.array([1, 0], np.int32),
    answers={"model/both": np.array([1, 1], np.int32)},
)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    folder.config.write_text(yaml.safe_dump(Config().to_dict()))
    folder.inputs.write_text(json.dumps({"teacher": None}))
    add_attempt(folder, ATTEMPT)
    replace_lines(folder.metrics, LINES)
    write_predictions(folder.predictions, PREDICTIONS)
    return folder


def test_a_run_in_progress_is_read_whole(folder: RunFolder) -> None:
    run = read_run(folder.path)
    assert run.settings == Config() and run.recipe == "digits" and run.faults == ()
    assert [line["step"] for line in run.lines] == [2, 3]
    assert run.results == {"model/both/top1": 50.0, "model/both/top5": 90.0}
    assert (run.state, run.last_step, run.summary) == ("not finished", 3, None)
    assert run.versions == {"torch": "2.11.0"} and run.inputs == {"teacher": None}
    assert [event.kind for event in run.events] == ["start"]
    found = run.predictions
    assert found is not None and (found.step, found.images) == (2, "f00d")
    assert found.classes == ("a", "b") and found.rows.tolist() == [0, 2]
    assert found.answers["model/both"].tolist() == [1, 1]


def test_steps_are_columns_and_nan_where_a_line_has_none(folder: RunFolder) -> None:
    steps = read_run(folder.path).steps
    assert steps["step"].tolist() == [0, 1, 2]
    assert steps["loss"].tolist() == [2.0, math.inf, 1.0]
    assert np.isnan(steps["lr"][:2]).all() and steps["lr"][2] == 0.2


def test_a_finished_run_has_the_results_of_its_summary(folder: RunFolder) -> None:
    folder.summary.write_text(json.dumps({"results": {"teacher/both/top1": 75.0}, "steps": 3}))
    run = read_run(folder.path)
    assert run.state == "finished" and run.results == {"teacher/both/top1": 75.0}


def test_parts_that_are_damaged_are_named_and_the_others_read(folder: RunFolder) -> None:
    folder.config.write_text("optim: {epochs: many}")
    folder.summary.write_text("[")
    folder.inputs.write_text("[]")
    folder.predictions.write_bytes(b"PAR1")
    with folder.metrics.open("a") as file:
        file.write('{"loss": 1}\n{"step": true, "lr": 1}\n{"step": 4, "lr"')
    run = read_run(folder.path)
    assert run.settings is run.summary is run.predictions is None and run.inputs == {}
    assert len(run.lines) == 2 and run.recipe == "digits"
    for name in ("config.yaml", "summary.json", "inputs.json", "predictions.parquet"):
        assert len([fault for fault in run.faults if name in fault]) == 1


def test_a_log_of_means_alone_has_no_steps(folder: RunFolder) -> None:
    replace_lines(folder.metrics, [{"step": 50, "loss": 2.0, "lr": 0.1, "by_step": 3}])
    folder.attempts.write_text("")
    run = read_run(folder.path)
    assert run.steps == {} and run.recipe == "" and len(run.lines) == 1


def test_a_bare_log_is_a_run() -> None:
    run = read_run(ROOT / "tests/support/older_log.jsonl")
    assert run.settings is None and run.attempts == () and run.faults == ()
    assert run.last_step > 100 and run.results["model/both/top1"] > 80


@pytest.mark.parametrize("name", ["empty", "absent", "text"])
def test_what_is_no_run_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("no log")
    with pytest.raises(ValueError, match=rf"^RUN must be .* \(got .*{name}\)$"):
        read_run(tmp_path / name)


def test_a_path_that_cannot_be_looked_at_is_refused() -> None:
    with pytest.raises(ValueError, match="^RUN must be a path that can be read .*too long"):
        read_run(Path("a" * 5000))


def test_names_are_printable(folder: RunFolder) -> None:
    odd = folder.path.with_name("a\x1b[31m\udcff")
    folder.path.rename(odd)
    assert read_run(odd).name.endswith("a\\x1b[31m\\xff")
