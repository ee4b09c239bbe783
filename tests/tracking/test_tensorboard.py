"""TensorBoard's files: curves in groups, samples, settings; whatever fails about them is a note."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata, plugin_data_pb2
from tensorboard.summary.writer import record_writer

from fastdeit.tracking.callbacks import RunEnd, RunStart
from fastdeit.tracking.tensorboard import TensorBoard
from fastdeit.tracking.trackers import Trackers

LINE = {"step": 1, "epoch": 0.1, "time": 5.0, "loss": float("nan"), "mfu": 0.3, "digest": "ab"}
SCORES = {"step": 2, "epoch": 0.2, "time": 6.0, "model/both/top1": 50.0, "ema/cls/top5": 60}


def write_events(folder: Path, top1: Any = 50.0, outcome: Any = "finished") -> list[str]:
    """Write a short run; return the notes."""
    notes: list[str] = []
    trackers = Trackers()
    hparams = {"lr": 0.1, "epochs": 3, "aa": "rand-m9", "ratio": (0.75, 1.5), "src": False}
    trackers.add("TensorBoard", TensorBoard(folder, hparams, notes.append), notes.append)
    settings = {"optim": {"lr": 0.1, "opt_betas": (0.9, 0.999)}}
    facts = {"data": "Käse \udce4 <b>"}
    trackers.start(RunStart(folder, "digits", settings, facts, 0, 3, 0))
    trackers.send("on_images", 0, np.full((2, 4, 6, 3), 128, np.uint8), ["cat", "0.5 a|b"])
    trackers.send("on_log", LINE)
    trackers.send("on_evaluation", SCORES | {"model/both/top1": top1})
    trackers.end(RunEnd(outcome, 2))
    return notes


def read_events(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()


def test_curves_are_in_groups(tmp_path: Path) -> None:
    assert write_events(tmp_path) == []
    shown = read_events(tmp_path)
    assert set(shown.Tags()["scalars"]) == {
        "train/loss",
        "speed/mfu",
        "progress/epoch",
        "validation/model/both/top1",
        "validation/ema/cls/top5",
    }
    (score,) = shown.Scalars("validation/model/both/top1")
    assert (score.step, score.value, score.wall_time) == (2, 50.0, 6.0)


def test_samples_and_settings_are_shown(tmp_path: Path) -> None:
    write_events(tmp_path)
    shown = read_events(tmp_path)
    assert shown.Tags()["images"] == ["samples/00", "samples/01"]
    (picture,) = shown.Images("samples/01")
    assert (picture.width, picture.height) == (6, 4)

    def text(tag: str) -> str:
        (event,) = shown.Tensors(f"{tag}/text_summary")
        return event.tensor_proto.string_val[0].decode()  # type: ignore[no-any-return]

    assert "| 01 | 0.5 a\\|b |" in text("samples")
    assert "      opt_betas:\n      - 0.9" in text("settings")
    assert "recipe: digits" in text("run") and "Käse \\uDCE4 <b>" in text("run")


def read_plugin(shown: EventAccumulator, tag: str) -> Any:
    content = shown.SummaryMetadata(tag).plugin_data.content
    return plugin_data_pb2.HParamsPluginData.FromString(content)


def test_runs_compare_in_the_hparams_tab(tmp_path: Path) -> None:
    write_events(tmp_path)
    shown = read_events(tmp_path)
    session = read_plugin(shown, metadata.SESSION_START_INFO_TAG).session_start_info
    values = {name: session.hparams[name] for name in session.hparams}
    assert {name for name in values if values[name].HasField("number_value")} == {"lr", "epochs"}
    assert values["lr"].number_value == 0.1 and values["src"].string_value == "False"
    assert values["ratio"].string_value == "(0.75, 1.5)"
    experiment = read_plugin(shown, metadata.EXPERIMENT_TAG).experiment
    assert {info.name for info in experiment.hparam_infos} == set(values)
    metrics = [info.name.tag for info in experiment.metric_infos]
    assert metrics[0] == "validation/model/both/top1" and metrics[0] in shown.Tags()["scalars"]
    end = read_plugin(shown, metadata.SESSION_END_INFO_TAG).session_end_info
    assert end.status == 1  # STATUS_SUCCESS


def test_a_run_that_was_stopped_has_no_final_status_yet(tmp_path: Path) -> None:
    write_events(tmp_path, outcome="stopped")
    assert metadata.SESSION_END_INFO_TAG not in read_events(tmp_path).Tags()["tensors"]
    write_events(tmp_path)
    end = read_plugin(read_events(tmp_path), metadata.SESSION_END_INFO_TAG).session_end_info
    assert end.status == 1


def test_value_that_tensorboard_refuses_is_noted_once(tmp_path: Path) -> None:
    (note,) = write_events(tmp_path / "events", top1=10**400)
    assert note.startswith("TensorBoard is off from here on: ")


@pytest.mark.parametrize("module", ["tensorboard", "tensorboard.compat.proto"])
def test_missing_library_is_noted_once(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in list(sys.modules):
        if name.split(".")[0] == "tensorboard" or name.startswith("torch.utils.tensorboard"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    (note,) = write_events(tmp_path / "events")
    assert "TensorBoard is off from here on: ModuleNotFoundError: " in note


def test_broken_library_is_noted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise TypeError("Descriptors cannot be created directly")

    monkeypatch.setattr(record_writer, "RecordWriter", fail)
    (note,) = write_events(tmp_path / "events")
    assert note.endswith("TypeError: Descriptors cannot be created directly")


def test_file_in_place_of_the_folder_is_noted_once(tmp_path: Path) -> None:
    (tmp_path / "events").touch()
    (note,) = write_events(tmp_path / "events")
    assert "TensorBoard is off from here on: FileExistsError" in note
