"""Checks of decoders and of the data set."""

from pathlib import Path

import numpy as np
import pytest

from fastdeit.data.indexing import build_index
from fastdeit.doctor.checks import pictures
from fastdeit.doctor.findings import Finding, Target
from tests.support.images import write_pixels, write_shapes


def check(data: Path, split: str = "train") -> Finding:
    return pictures.check_data(Target(data_path=str(data), train_split=split))


def test_dali_decodes_as_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "_has_gpu", lambda: False)
    assert pictures.check_decoder(Target()).status == "ok"
    monkeypatch.setattr(pictures, "_decode_with_pillow", lambda data: np.zeros((375, 500, 3)))
    finding = pictures.check_decoder(Target())
    assert finding.status == "warning" and "differ from Pillow's" in finding.found


def test_a_decoder_that_fails_on_a_gpu_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = np.zeros((2, 2, 3), np.uint8)

    def decode(data: bytes, device: str, options: dict[str, float]) -> np.ndarray:
        if options.get("hw_decoder_load") == 1.0:
            raise RuntimeError("nvJPEG:\n no hardware engine")
        return wanted if device == "cpu" else wanted + 9

    monkeypatch.setattr(pictures, "_decode", decode)
    monkeypatch.setattr(pictures, "_decode_with_pillow", lambda data: wanted)
    monkeypatch.setattr(pictures, "_has_gpu", lambda: True)
    finding = pictures.check_decoder(Target())
    assert finding.status == "warning"
    assert "hardware fails: nvJPEG: no hardware engine" in finding.found
    assert "mixed decodes other pixels" in finding.found
    assert "do not use --decoder hardware" in finding.cure


@pytest.mark.gpu
def test_the_gpu_decodes_as_pillow() -> None:
    finding = pictures.check_decoder(Target())
    assert finding.status in ("ok", "warning") and "mixed (mean difference" in finding.found


def test_a_data_set_without_an_index_is_a_warning_and_with_one_good(tmp_path: Path) -> None:
    data = write_shapes(tmp_path / "data")
    finding = check(data)
    assert finding.status == "warning" and finding.cure.startswith(f"fastdeit index {data}")
    assert "folder, 24 of 24 images decode" in finding.found
    assert not (data / ".fastdeit").exists()
    build_index(data, "train")
    assert check(data).status == "ok"


def test_files_of_pixels_are_read_as_a_whole(tmp_path: Path) -> None:
    write_pixels(tmp_path, "train", np.zeros((2, 4, 4), np.uint8))
    finding = check(tmp_path)
    assert "train: idx, 2 images; no index yet; no val" in finding.found
    write_pixels(tmp_path, "t10k", np.zeros((2, 4, 4), np.uint8))
    assert "no val" not in check(tmp_path).found
    (tmp_path / "train-images-idx3-ubyte").write_bytes(b"torn")
    assert check(tmp_path).status == "broken"


def test_damaged_images_are_named(tmp_path: Path) -> None:
    data = write_shapes(tmp_path / "data")
    damaged = data / "train" / "circle" / "01.jpg"
    damaged.write_bytes(b"no image")
    finding = check(data)
    assert finding.status == "warning" and f"{damaged}: is no JPEG" in finding.found
    assert "--bad-images skip" in finding.cure


def test_a_folder_that_is_no_data_set_is_broken(tmp_path: Path) -> None:
    finding = check(tmp_path)
    assert finding.status == "broken" and "holds no 'train'" in finding.found
    assert check(write_shapes(tmp_path / "data"), "training").status == "broken"


def test_a_data_set_is_optional() -> None:
    assert pictures.check_data(Target()).status == "not applicable"
