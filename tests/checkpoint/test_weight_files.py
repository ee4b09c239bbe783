"""The weights beside the checkpoints: always those of the newest and of the best one, whole."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fastdeit.checkpoint import weight_files
from fastdeit.checkpoint.store import save_checkpoint
from fastdeit.checkpoint.weight_files import WeightFiles
from fastdeit.storage.run_folder import RunFolder
from fastdeit.storage.tensor_files import read_metadata

METADATA = {"format": "pt", "model": "deit"}
FILES = ("model", "model_ema", "model_best", "model_ema_best")


def save(folder: RunFolder, step: int, metadata: dict[str, str] | None = None) -> Path:
    """Write a checkpoint whose weights are its step, and whose EMA is half of it."""
    tensors = {
        "model": {"a": torch.full((3,), float(step))},
        "ema": {"a": torch.full((3,), step / 2)},
        "exp_avg": {"a": torch.zeros(3)},
    }
    state = {"step": step, "adam_step": step, "skipped": 0}
    written = METADATA | {"step": str(step)} if metadata is None else metadata
    return save_checkpoint(folder.checkpoints, step, tensors, state, 2, {}, written)


def values(folder: RunFolder) -> list[float | None]:
    """Return the value in each of FILES; None where there is no file."""
    paths = [getattr(folder, name) for name in FILES]
    return [load_file(path)["a"][0].item() if path.exists() else None for path in paths]


def make(path: Path) -> tuple[RunFolder, WeightFiles]:
    folder = RunFolder(path)
    return folder, WeightFiles(folder, METADATA, {"architecture": "deit"})


def test_files_are_those_of_the_newest_and_of_the_best_checkpoint(tmp_path: Path) -> None:
    folder, weights = make(tmp_path)
    assert weights.update({}) == [] and list(tmp_path.iterdir()) == []
    save(folder, 2)
    weights.update({})
    assert values(folder) == [2, 1, None, None]
    save(folder, 4)
    weights.update({4: 50.0})
    assert values(folder) == [4, 2, 4, 2]
    save(folder, 6)
    weights.update({4: 50.0, 6: 40.0})
    assert values(folder) == [6, 3, 4, 2]
    assert json.loads(folder.model_config.read_text()) == {"architecture": "deit"}
    assert read_metadata(folder.model_best) == METADATA | {"step": "4"}


def test_files_take_no_space_and_stay_without_the_checkpoint(tmp_path: Path) -> None:
    folder, weights = make(tmp_path)
    checkpoint = save(folder, 2)
    weights.update({2: 1.0})
    assert folder.model.samefile(checkpoint / "model.safetensors")
    assert folder.model_ema_best.samefile(checkpoint / "ema.safetensors")
    shutil.rmtree(folder.checkpoints)
    assert values(folder) == [2, 1, 2, 1]


@pytest.mark.parametrize("cause", ["no links", "earlier version", "other settings"])
def test_files_are_written_where_a_link_would_not_do(
    tmp_path: Path, cause: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, weights = make(tmp_path)
    if cause == "no links":
        monkeypatch.setattr(weight_files, "_link", lambda *_: False)
    metadata = {"earlier version": {}, "other settings": METADATA | {"step": "2", "crop": "1"}}
    checkpoint = save(folder, 2, metadata.get(cause))
    weights.update({2: 1.0})
    assert values(folder) == [2, 1, 2, 1]
    assert not folder.model.samefile(checkpoint / "model.safetensors")
    assert all(read_metadata(getattr(folder, name)) == METADATA | {"step": "2"} for name in FILES)


def test_a_second_process_writes_the_same_files(tmp_path: Path) -> None:
    folder, weights = make(tmp_path)
    save(folder, 2)
    weights.update({2: 1.0})
    make(tmp_path)[1].update({2: 1.0})
    assert values(folder) == [2, 1, 2, 1]
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".tmp")]


def test_files_follow_a_run_that_is_set_back(tmp_path: Path) -> None:
    folder, weights = make(tmp_path)
    save(folder, 2)
    later = save(folder, 4)
    weights.update({2: 1.0, 4: 2.0})
    later.rename(later.with_name(later.name + ".aside"))
    weights.update({2: 1.0})
    assert values(folder) == [2, 1, 2, 1]
    again = save(folder, 4)
    weights.update({2: 1.0, 4: 2.0})
    assert folder.model_best.samefile(again / "model.safetensors")


def test_best_weights_follow_a_checkpoint_that_is_made_anew(tmp_path: Path) -> None:
    folder, weights = make(tmp_path)
    save(folder, 2)
    later = save(folder, 4)
    weights.update({4: 2.0})
    later.rename(later.with_name(later.name + ".aside"))
    weights.update({})  # rolled back to before the first evaluation
    again = save(folder, 4)
    weights.update({4: 1.0})
    assert folder.model_best.samefile(again / "model.safetensors")
    assert folder.model_ema_best.samefile(again / "ema.safetensors")


def test_damaged_best_checkpoint_changes_no_file(tmp_path: Path) -> None:
    folder, weights = make(tmp_path)
    best = save(folder, 2)
    save(folder, 4)
    data = bytearray((best / "ema.safetensors").read_bytes())
    data[-1] ^= 1
    (best / "ema.safetensors").write_bytes(data)
    (line,) = weights.update({2: 9.0, 4: 1.0})
    assert "model_best.safetensors is not that of the best evaluation" in line and "damaged" in line
    assert values(folder) == [4, 2, None, None]


def test_full_disk_is_an_error_and_leaves_the_older_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, weights = make(tmp_path)
    save(folder, 2)
    weights.update({})
    save(folder, 4)

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(weight_files.os, "replace", refuse)
        with pytest.raises(OSError, match="No space"):
            weights.update({})
    assert values(folder) == [2, 1, None, None]
    assert len(list(tmp_path.iterdir())) == 4  # checkpoints, config.json, two weights
    weights.update({})
    assert values(folder) == [4, 2, None, None]


def test_others_may_read_what_the_umask_allows(tmp_path: Path) -> None:
    folder, weights = make(tmp_path)
    before = os.umask(0o027)
    try:
        save(folder, 2)
        weights.update({})
    finally:
        os.umask(before)
    assert folder.model.stat().st_mode & 0o777 == 0o640
