"""Images with any extension are read or excluded with a reason, and litter is ignored, in every
format."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastdeit.data.formats.file_names import extension_fault, is_image, is_litter
from fastdeit.data.formats.listing import DataError
from fastdeit.data.indexing import build_index

LITTER = (
    *("__MACOSX/0.png", "__MACOSX/cat/._0.png", "._0.png", "cat/._0.png", ".DS_Store"),
    *("cat/.ipynb_checkpoints/0-checkpoint.png", "cat/Thumbs.db", "cat/@eaDir/0.png"),
)


def png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


@pytest.mark.parametrize("name", LITTER)
def test_litter_is_known(name: str) -> None:
    assert is_litter(name)


@pytest.mark.parametrize("name", ["a.png", "cat/_0.png", "macosx/a.png", "cat.DS_Store/a.png", ""])
def test_other_files_are_no_litter(name: str) -> None:
    assert not is_litter(name)


@pytest.mark.parametrize("name", ["a.JPG", "a.b.png", "v1.0_1.jpeg", ".webp", "x/1.Bmp"])
def test_images_that_are_read(name: str) -> None:
    assert is_image(name) and not extension_fault(name)


@pytest.mark.parametrize("name", ["a.tif", "a.b.GIF", "a.jfif", "a.heic"])
def test_images_that_are_not_read(name: str) -> None:
    extension = Path(name).suffix.lower()
    assert is_image(name)
    assert extension_fault(name).startswith(f"has the extension {extension}; those that are read")


@pytest.mark.parametrize("name", ["a.txt", "a.jpg.txt", "a", "a.npy", "jpg"])
def test_no_images(name: str) -> None:
    assert not is_image(name)


def test_litter_in_class_folders_is_ignored(tmp_path: Path) -> None:
    write(tmp_path / "train/cat/0.png", png())
    for name in LITTER:
        write(tmp_path / "train" / name, b"\0\5\x16\7")
    index = build_index(tmp_path, "train", bad_images="error")
    assert (len(index), index.classes) == (1, ("cat",))


@pytest.mark.parametrize("name", ["._0.png", ".ipynb_checkpoints/0.png"])
def test_a_class_folder_of_litter_is_refused_as_an_empty_one(tmp_path: Path, name: str) -> None:
    write(tmp_path / "train/cat/0.png", png())
    write(tmp_path / "train/dog" / name, png())
    with pytest.raises(DataError, match="dog: no images in this class"):
        build_index(tmp_path, "train")


def write_shard(path: Path, names: tuple[str, ...]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in ((name, b"0" if name.endswith("cls") else png()) for name in names):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize("split", ["train", "train/*.tar"])
def test_litter_in_and_beside_shards_is_ignored(tmp_path: Path, split: str) -> None:
    write_shard(tmp_path / "train/0.tar", (*LITTER, "0.png", "0.cls", "._0.cls"))
    write(tmp_path / "train/._0.tar", b"\0\5\x16\7")
    assert len(build_index(tmp_path, split, bad_images="error")) == 1


def test_litter_beside_the_shards_of_a_folder_is_ignored(tmp_path: Path) -> None:
    write_shard(tmp_path / "set-train-0.tar", ("0.png", "0.cls"))
    write(tmp_path / "._set-train-0.tar", b"\0\5\x16\7")
    assert len(build_index(tmp_path, "train", bad_images="error")) == 1


def test_litter_among_flat_images_is_ignored(tmp_path: Path) -> None:
    write(tmp_path / "train/cat/0.png", png())
    write(tmp_path / "val/1.png", png())
    write(tmp_path / "val/._1.png", b"\0\5\x16\7")
    (tmp_path / "val.txt").write_text("1.png 0\n")
    assert len(build_index(tmp_path, "val", bad_images="error")) == 1


FOLDER_EXCLUDED = {
    "train/loose.png": "has no class: it is in no class folder",
    "train/cat/1.tif": "has the extension .tif; those that are read are .jpg, .jpeg, .png, ",
    "train/cat/deep.er/2.v1.GIF": "has the extension .gif; those",
}


def test_images_that_a_folder_cannot_use_are_excluded_with_a_reason(tmp_path: Path) -> None:
    write(tmp_path / "train/cat/0.v1.PNG", png())
    for name in FOLDER_EXCLUDED:
        write(tmp_path / name, png())
    index = build_index(tmp_path, "train", bad_images="skip")
    excluded = dict(line.split(": ", 1) for line in index.excluded)
    assert (len(index), excluded.keys()) == (1, FOLDER_EXCLUDED.keys())
    assert all(excluded[name].startswith(reason) for name, reason in FOLDER_EXCLUDED.items())


def test_a_class_may_be_called_like_an_image(tmp_path: Path) -> None:
    write(tmp_path / "train/logo.png/0.png", png())
    index = build_index(tmp_path, "train", bad_images="error")
    assert (len(index), index.classes) == (1, ("logo.png",))


def test_a_class_folder_in_which_all_images_are_damaged_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "train/cat/0.png", png())
    write(tmp_path / "train/dog/0.png", png()[:-20])
    assert build_index(tmp_path, "train", bad_images="skip").classes == ("cat", "dog")
    message = r"the class dog of 'train' holds no image that can be used\n  train/dog/0\.png: "
    with pytest.raises(DataError, match=message):
        build_index(tmp_path, "train", bad_images="skip", require_classes=True)
