"""Weights & Biases, offline: what its file holds; a wandb that fails or hangs is a note."""

import json
import os
import signal
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from fastdeit.config.parse import SettingError
from fastdeit.tracking import wandb_tracker
from fastdeit.tracking.callbacks import RunEnd, RunStart
from fastdeit.tracking.trackers import Trackers
from fastdeit.tracking.wandb_tracker import WandbTracker, check_wandb
from tests.support.launching import ROOT

SETTINGS = {"optim": {"lr": 0.1, "opt_betas": (0.9, 0.999)}}
# what stands in for wandb: records its calls in a file, and fails as the first line says
FAKE = """
import json, sys, time
FAULT = {fault!r}
class Settings:
    def __init__(self, **names): self.names = names
class Image:
    def __init__(self, image, caption): pass
class Run:
    def log(self, values, step):
        note("log", step, sorted(values))
        if FAULT == "log": raise OSError("no network")
        if FAULT == "hang": time.sleep(60)
    def finish(self, exit_code): note("finish", exit_code)
def note(*words):
    with open({path!r}, "a") as file: file.write(json.dumps(words) + "\\n")
def init(**names):
    print("wandb says something")
    sys.exit = None
    note("init", names["id"], names["resume"], names["settings"].names["console"])
    if FAULT == "init": raise RuntimeError("api_key not configured")
    return Run()
"""


def track(
    folder: Path, step: int = 0, logged_step: int = 0, outcome: Any = "finished", last: int = 30
) -> list[str]:
    """Track a short run in `folder`; return the notes."""
    notes: list[str] = []
    trackers = Trackers()
    tracker = WandbTracker(folder, folder / "wandb-run.json", "deit", ["a", "b"])
    trackers.add("wandb", tracker, notes.append)
    trackers.start(RunStart(folder, "digits", SETTINGS, {}, step, 30, logged_step))
    if step == 0:
        trackers.send("on_images", 0, np.zeros((2, 4, 4, 3), np.uint8), ["cat", "dog"])
    for number in range(step + 10, last + 1, 10):
        trackers.send("on_log", {"step": number, "loss": number / 2, "digest": "ab"})
    trackers.send("on_evaluation", {"step": last, "epoch": 1.0, "model/both/top1": 50.0})
    trackers.end(RunEnd(outcome, last))
    return notes


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that puts a wandb with a fault in the place of the real one, and returns
    the file of its calls."""

    def place(fault: str) -> Path:
        calls = tmp_path / "calls.jsonl"
        code = FAKE.format(fault=fault, path=str(calls))
        (tmp_path / "modules").mkdir(exist_ok=True)
        (tmp_path / "modules" / "wandb.py").write_text(code)
        monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'modules'}{os.pathsep}{ROOT}")
        return calls

    return place


def read_calls(calls: Path) -> list[list[Any]]:
    return [json.loads(line) for line in calls.read_text().splitlines()]


def read_records(data: bytes) -> Iterator[bytes]:
    """Yield the records of a .wandb file: 7 bytes, then LevelDB's log format, blocks of 32 KiB with
    parts of records (checksum, length, type)."""
    place = 7
    record = b""
    while place + 7 <= len(data):
        room = 32768 - place % 32768
        if room < 7:  # a block ends in zeros
            place += room
            continue
        _, size, kind = struct.unpack_from("<IHB", data, place)
        record += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def name_of(item: Any) -> str:
    return ".".join(item.nested_key) or str(item.key)


def test_offline_file_has_settings_and_curves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)  # train.py of a checkout starts anywhere
    before = [signal.getsignal(signal.SIGINT), sys.exit, sys.excepthook]
    assert track(tmp_path) == []
    assert [signal.getsignal(signal.SIGINT), sys.exit, sys.excepthook] == before
    assert capfd.readouterr() == ("", "")
    (path,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    records = list(map(wandb_internal_pb2.Record.FromString, read_records(path.read_bytes())))
    run = next(each.run for each in records if each.HasField("run"))
    assert run.run_id == json.loads((tmp_path / "wandb-run.json").read_text())["id"]
    assert (run.project, run.display_name, list(run.tags)) == ("deit", tmp_path.name, ["a", "b"])
    config = {each.key: json.loads(each.value_json) for each in run.config.update}
    assert config["optim"] == {"lr": 0.1, "opt_betas": [0.9, 0.999]}
    rows = [
        {name_of(item): json.loads(item.value_json) for item in each.history.item}
        for each in records
        if each.HasField("history")
    ]
    losses = {row["_step"]: row["train/loss"] for row in rows if "train/loss" in row}
    assert losses == {10: 5.0, 20: 10.0, 30: 15.0}
    assert rows[-1]["validation/model/both/top1"] == 50.0
    assert any(row["_step"] == 0 and any("samples" in key for key in row) for row in rows)


def test_a_resumed_run_continues_its_own_and_repeats_no_line(tmp_path: Path, fake: Any) -> None:
    calls = fake("")
    assert track(tmp_path, outcome="stopped", last=20) == []
    first = read_calls(calls)
    calls.unlink()
    assert track(tmp_path, step=10, logged_step=20, outcome="failed") == []
    second = read_calls(calls)
    assert first[0][:3] == second[0][:3] == ["init", first[0][1], "allow"]
    steps = [[call[1] for call in each if call[0] == "log"] for each in (first, second)]
    assert steps == [[0, 10, 20, 20], [30, 30]]
    assert [first[-1], second[-1]] == [["finish", 0], ["finish", 1]]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [("init", "RuntimeError: api_key not configured"), ("log", "OSError: no network")],
)
def test_a_wandb_that_fails_is_noted_once(
    fault: str, reason: str, tmp_path: Path, fake: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    fake(fault)
    assert track(tmp_path) == [f"wandb is off from here on: RuntimeError: {reason}"]
    assert capfd.readouterr() == ("", "")


def test_a_wandb_that_hangs_is_ended(
    tmp_path: Path, fake: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake("hang")
    monkeypatch.setattr(wandb_tracker, "FINISH_LIMIT_S", 0.5)
    began = time.monotonic()
    (note,) = track(tmp_path)
    assert note == "wandb is off from here on: RuntimeError: not all was sent within 0.5 s"
    assert time.monotonic() - began < 30
    children = psutil.Process().children()
    assert not [each for each in children if "wandb_child" in str(each.cmdline())]


def test_without_wandb_the_flag_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    check_wandb()
    monkeypatch.setattr(wandb_tracker.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SettingError, match=r"^--log-wandb must be off .* 'fastdeit\[wandb\]'"):
        check_wandb()
