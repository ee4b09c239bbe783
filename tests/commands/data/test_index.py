"""`fastdeit index`: its report, the files it writes, its exit codes."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastdeit.commands.data.index import index_command
from fastdeit.data.indexing import build_index
from tests.support.images import write_shapes


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_shapes(tmp_path / "set")


def text_of(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().out.replace("│", " ").split())


def test_report_describes_a_folder(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rotated = Image.Exif()
    rotated[0x0112] = 6
    Image.new("L", (300, 200)).save(root / "train/circle/01.jpg", exif=rotated)
    Image.new("CMYK", (2, 1)).save(root / "train/circle/02.jpg")
    (root / "train/square/01.jpg").write_bytes(b"")
    (root / "train/square/02.jpg").write_bytes(b"[red]text[/red]")
    assert index_command([str(root)]) == 0
    printed = text_of(capsys)
    train = "images 22", "excluded 2", "classes 3, of 6 to 8 images"
    sizes = "smallest 1 x 2", "largest 200 x 300"
    formats = "JPEG: 13, PNG: 9", "not RGB", "L: 1", "CMYK: 1", "orientation 6: 1"
    val = "images 9", "excluded 0"
    damaged = "excluded: train/square/01.jpg: is empty", "begins with b'[red]tex'"
    for part in (*train, *sizes, *formats, *val, *damaged):
        assert part in printed, part
    written = root / ".fastdeit/train-left-out.txt"
    assert f"all of them: {written}" in printed
    assert [line.split(": ")[0] for line in written.read_text().splitlines()] == [
        "train/square/01.jpg",
        "train/square/02.jpg",
    ]
    assert len(build_index(root, "train", bad_images="skip")) == 22


def test_old_list_is_removed_when_no_image_is_damaged(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = root / "train/square/01.jpg"
    whole = bad.read_bytes()
    bad.write_bytes(b"x")
    index_command([str(root)])
    assert (root / ".fastdeit/train-left-out.txt").is_file()
    bad.write_bytes(whole)
    index_command([str(root)])
    assert not (root / ".fastdeit/train-left-out.txt").exists()


def test_ten_damaged_images_are_named(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(12):
        (root / f"val/circle/x{number:02}.jpg").write_bytes(b"x")
    assert index_command([str(root), "--num-workers", "1"]) == 0
    printed = text_of(capsys)
    assert printed.count("excluded: ") == 10 and "and 2 more" in printed


def test_bad_images_can_be_an_error(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert index_command([str(root), "--bad_images", "error"]) == 0
    (root / "val/circle/x.jpg").write_bytes(b"x")
    with pytest.raises(SystemExit) as caught:
        index_command([str(root), "--bad-images", "error"])
    assert caught.value.code == 2
    assert capsys.readouterr().err.splitlines() == [
        f"fastdeit: error: {root}: 1 bad image(s), named above; --bad-images skip excludes them"
    ]


def test_missing_data_set_exits_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        index_command([str(tmp_path / "nowhere")])
    assert caught.value.code == 2
    assert "nowhere: no such folder" in capsys.readouterr().err


def test_more_validation_than_training_images_are_noted(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert index_command([str(root)]) == 0
    assert "exchanged" not in capsys.readouterr().out
    assert index_command([str(root), "--train-split", "val", "--val-split", "train"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "training images: are the splits exchanged?" in out


def test_splits_can_be_lists(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [
        f"train/circle/{number:02}.{'png' if number % 3 == 0 else 'jpg'}" for number in range(4)
    ]
    (root / "few.csv").write_text("".join(f"{name},circle\n" for name in names))
    assert index_command([str(root), "--train-split", "few.csv", "--val-split", "few.csv"]) == 0
    assert "classes 1, of 4 to 4 images" in text_of(capsys)
    assert len(np.unique(build_index(root, "few.csv").names.to_pylist())) == 4
