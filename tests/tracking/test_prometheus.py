"""Prometheus: what node_exporter's collector reads is complete, escaped and whole."""

import math
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fastdeit.tracking import prometheus
from fastdeit.tracking.callbacks import RunEnd, RunStart
from fastdeit.tracking.prometheus import PrometheusFile, format_metrics

LINE: dict[str, Any] = {
    "step": 30,
    "images_seen": 240,
    "skipped": 1,
    "epoch": 1.5,
    "time": 1.5e9,
    "loss": math.nan,
}
LINE |= {"lr": 1e-3, "images_per_s": 99.5, "memory_gb": 2.5, "by_step": {"loss": [1.0]}}
SCORES = {"model/both/top1": 50.0, "ema/cls/top5": 80.0}
HOSTILE = 'a"b\\c\nd \udce4 猫'


def parse(text: str) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Return the samples of each metric: labels and value."""
    return {
        sample.name: [(each.labels, each.value) for each in family.samples]
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_values_have_names_with_units_and_labels() -> None:
    labels = {"run": HOSTILE, "recipe": "deit"}
    text = format_metrics(labels, LINE, SCORES, running=True)
    found = parse(text)
    shown = {"run": 'a"b\\c\nd \\udce4 猫', "recipe": "deit"}
    assert found["fastdeit_images_per_second"] == [(shown, 99.5)]
    assert found["fastdeit_memory_bytes"] == [(shown, 2.5e9)]
    assert found["fastdeit_steps_total"] == [(shown, 30)]
    assert found["fastdeit_running"] == [(shown, 1)]
    assert math.isnan(found["fastdeit_loss"][0][1])
    assert "fastdeit_mfu_ratio" not in found  # a CPU has none
    scores = {tuple(list(own.values())[2:]): value for own, value in found[ACCURACY]}
    assert scores == {("model", "both", "top1"): 0.5, ("ema", "cls", "top5"): 0.8}


ACCURACY = "fastdeit_validation_accuracy_ratio"


def test_each_metric_has_help_and_a_type_once() -> None:
    text = format_metrics({"run": "r"}, LINE, SCORES, running=False)
    families = list(text_string_to_metric_families(text))
    assert all(family.documentation and family.type != "unknown" for family in families)
    kinds = {family.name: family.type for family in families}
    assert kinds["fastdeit_steps"] == "counter" and kinds["fastdeit_epochs"] == "gauge"
    assert text.count("# TYPE") == len(families) and text.endswith("\n")


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 10**15, 1e-7])
def test_any_number_is_read_back(value: Any) -> None:
    ((_, found),) = parse(format_metrics({}, {"loss": value}, {}, running=True))["fastdeit_loss"]
    assert found == pytest.approx(value, rel=0, abs=0, nan_ok=True)


def test_file_follows_the_run_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.prom"
    file = PrometheusFile(path, "runs/x", print)

    def read(name: str) -> float:
        return parse(path.read_text())[f"fastdeit_{name}"][0][1]

    file.on_start(RunStart(tmp_path, "deit", {}, {}, 20, 100, 20))
    assert (read("steps_total"), read("running")) == (20, 1)
    file.on_log(LINE)
    assert read("steps_total") == 20  # within a second of the write before
    monkeypatch.setattr(prometheus, "_EVERY_S", 0.0)
    file.on_log(LINE)
    assert read("steps_total") == 30
    file.on_evaluation({"step": 30, "epoch": 2.0, **SCORES})
    file.on_end(RunEnd("failed", 30))
    assert (read("running"), read("validation_accuracy_ratio")) == (0, 0.5)
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.prom"]


def test_full_disk_is_noted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prometheus, "_EVERY_S", 0.0)
    notes: list[str] = []
    folder = tmp_path / "metrics"
    file = PrometheusFile(folder / "run.prom", "runs/x", notes.append)
    file.on_start(RunStart(tmp_path, "deit", {}, {}, 0, 100, 0))
    file.on_log(LINE)
    folder.mkdir()
    file.on_log(LINE)
    assert len(notes) == 2 and "cannot be written: [Errno 2]" in notes[0]
    assert notes[1].endswith("can be written again")
