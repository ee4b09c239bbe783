"""TensorBoard events: whatever fails about them is a note."""

import sys
from pathlib import Path

import pytest
from tensorboard.summary.writer import record_writer

from fastdeit.tracking.tensorboard import EventLog


def write_events(folder: Path) -> list[str]:
    """Write two scalars; return the notes."""
    notes: list[str] = []
    events = EventLog(folder, 0, notes.append)
    for step in (1, 2):
        events.write(step, 5.0, {"loss": float("nan"), "top1": 10**400 if step == 2 else 1})
    events.close()
    return notes


def test_value_that_tensorboard_refuses_is_noted_once(tmp_path: Path) -> None:
    (note,) = write_events(tmp_path / "events")
    assert note.startswith(f"{tmp_path}/events is missing: ")


@pytest.mark.parametrize("module", ["tensorboard", "tensorboard.compat.proto"])
def test_missing_library_is_noted_once(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in list(sys.modules):
        if name.split(".")[0] == "tensorboard":
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    (note,) = write_events(tmp_path / "events")
    assert "events is missing: ModuleNotFoundError: " in note


def test_broken_library_is_noted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise TypeError("Descriptors cannot be created directly")

    monkeypatch.setattr(record_writer, "RecordWriter", fail)
    (note,) = write_events(tmp_path / "events")
    assert note.endswith("TypeError: Descriptors cannot be created directly")


def test_file_in_place_of_the_folder_is_noted_once(tmp_path: Path) -> None:
    (tmp_path / "events").touch()
    (note,) = write_events(tmp_path / "events")
    assert "events is missing: FileExistsError" in note
