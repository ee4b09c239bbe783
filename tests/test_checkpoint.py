"""A checkpoint is whole or it is not there; damage is named and passed over."""

import json
from pathlib import Path

import pytest
import torch

from fastdeit import checkpoint
from fastdeit.checkpoint import list_checkpoints, load_checkpoint, newest_checkpoint, save_checkpoint, sweep

TENSORS = {"model": {"a": torch.arange(6.0).view(2, 3), "b.c": torch.tensor(3)}, "ema": {"a": torch.ones(2, 3)}}
STATE = {"step": 7, "note": "ü"}


def save(folder: Path, step: int, keep: int = 5) -> Path:
    return save_checkpoint(folder, step, TENSORS, STATE | {"step": step}, keep)


def test_comes_back_as_it_was(tmp_path: Path) -> None:
    tensors, state = load_checkpoint(save(tmp_path, 7))
    assert state == STATE
    assert {stem: set(named) for stem, named in tensors.items()} == {"model": {"a", "b.c"}, "ema": {"a"}}
    for stem, named in TENSORS.items():
        for name, value in named.items():
            assert torch.equal(tensors[stem][name], value) and tensors[stem][name].dtype == value.dtype


def test_only_the_newest_stay(tmp_path: Path) -> None:
    for step in (3, 20, 100, 9):
        save(tmp_path, step, keep=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000100", "step-00000020"]


def test_a_step_saved_again_replaces_the_old_one(tmp_path: Path) -> None:
    path = save(tmp_path, 7)
    (path / "model.safetensors").write_bytes(b"")
    save(tmp_path, 7)
    assert newest_checkpoint(tmp_path) == (path, [])


@pytest.mark.parametrize("damage", ["flip", "cut", "delete", "manifest", "no manifest", "format"])
def test_damage_is_named_and_the_older_one_taken(tmp_path: Path, damage: str) -> None:
    older, newest = save(tmp_path, 5), save(tmp_path, 9)
    file = newest / "model.safetensors"
    data = file.read_bytes()
    manifest = newest / "manifest.json"
    if damage == "flip":
        file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "cut":
        file.write_bytes(data[:-1])
    elif damage == "delete":
        file.unlink()
    elif damage == "manifest":
        manifest.write_text("{")
    elif damage == "format":
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 99}))
    else:
        manifest.unlink()
    found, complaints = newest_checkpoint(tmp_path)
    assert found == older and len(complaints) == 1 and str(newest) in complaints[0]
    with pytest.raises(ValueError, match=newest.name):
        load_checkpoint(newest)


@pytest.mark.parametrize("point", ["save_file", "_sha256", "_sync", "rename"])
def test_a_disk_that_refuses_leaves_the_older_one_and_no_rest(
    tmp_path: Path, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = save(tmp_path, 5)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.os if point == "rename" else checkpoint, point, refuse)
        with pytest.raises(OSError, match="No space"):
            save(tmp_path, 9)
    assert newest_checkpoint(tmp_path) == (older, []) and [path.name for path in tmp_path.iterdir()] == [older.name]


def test_a_killed_save_does_not_count_and_is_swept(tmp_path: Path) -> None:
    save(tmp_path, 5)
    rest = tmp_path / "step-00000009.tmp-0badcafe"
    rest.mkdir()
    (rest / "model.safetensors").write_bytes(b"half")
    assert newest_checkpoint(tmp_path)[0] == tmp_path / "step-00000005"
    sweep(tmp_path)
    assert not rest.exists()


def test_nothing_there(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "nowhere") == (None, [])
    with pytest.raises(ValueError, match="no checkpoint"):
        load_checkpoint(tmp_path)
