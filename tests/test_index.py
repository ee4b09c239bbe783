"""The table of an image folder: its order, its cache, its errors; and the embedded digits."""

import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from fastdeit.data import index as index_module
from fastdeit.data.digits import write_digits
from fastdeit.data.index import DataError, build_index, check_file


def save(path: Path, height: int = 6, width: int = 8, orientation: int = 1) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((height, width, 3), 90, np.uint8)).save(path, exif=exif)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "set"
    save(root / "train/cat/b.png", 6, 8)
    save(root / "train/cat/deep/er/a.JPEG", 10, 4)
    save(root / "train/cat/a.WebP", 5, 5)
    save(root / "train/ant/z.bmp", 7, 3)
    save(root / "val/cat/v.jpg", 9, 9)
    return root


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are decoded from here on."""
    names: list[str] = []

    def spy(file: bytes) -> object:
        names.append(os.path.basename(os.fsdecode(file)))
        return check_file(file)

    monkeypatch.setattr(index_module, "check_file", spy)
    return names


def test_order_and_labels_are_those_of_image_folder(folder: Path) -> None:
    index = build_index(folder, "train")
    expected = ImageFolder(str(folder / "train"))
    assert list(index.classes) == expected.classes
    assert [(str(index.path(i)), label) for i, label in enumerate(index.labels.tolist())] == expected.samples
    assert [tuple(size) for size in index.sizes.tolist()] == [Image.open(path).size[::-1] for path, _ in expected.samples]
    assert (index.labels.dtype, index.sizes.dtype) == (np.int64, np.int32)


def test_val_counts_the_classes_of_train(folder: Path) -> None:
    val = build_index(folder, "val")
    assert val.classes == ("ant", "cat")
    assert val.labels.tolist() == [1]


def test_given_classes_are_the_labels(folder: Path) -> None:
    assert build_index(folder, "val", classes=["bee", "cat"]).labels.tolist() == [1]


def test_path_bytes_are_the_files(folder: Path) -> None:
    index = build_index(folder, "train")
    names = [bytes(name).decode() for name in index.path_bytes(np.array([2, 0]))]
    assert names == [str(index.path(2)), str(index.path(0))]


def test_exif_rotation_is_not_applied(folder: Path) -> None:
    save(folder / "val/cat/v.jpg", 12, 20, orientation=6)
    assert build_index(folder, "val").sizes.tolist() == [[12, 20]]


def test_unusual_file_names_work(folder: Path) -> None:
    (folder / "val/cat/v.jpg").rename(os.fsdecode(os.fsencode(folder) + b"/val/cat/v \xff.jpg"))
    assert build_index(folder, "val").path(0).is_file()
    assert len(build_index(folder, "val")) == 1


def test_second_time_nothing_is_decoded(folder: Path, decoded: list[str]) -> None:
    first = build_index(folder, "train")
    assert len(decoded) == 4
    again = build_index(folder, "train")
    assert len(decoded) == 4
    assert again.fingerprint() == first.fingerprint()
    np.testing.assert_array_equal(again.sizes, first.sizes)


def test_only_what_changed_is_decoded_again(folder: Path, decoded: list[str]) -> None:
    before = build_index(folder, "train").fingerprint()
    decoded.clear()
    save(folder / "train/cat/b.png", 30, 8)
    save(folder / "train/ant/new.png", 2, 2)
    (folder / "train/cat/a.WebP").unlink()
    index = build_index(folder, "train")
    assert sorted(decoded) == ["b.png", "new.png"]
    sizes = {index.path(i).name: tuple(index.sizes[i].tolist()) for i in range(len(index))}
    assert sizes == {"new.png": (2, 2), "z.bmp": (7, 3), "b.png": (30, 8), "a.JPEG": (10, 4)}
    assert index.fingerprint() != before


def test_touched_file_is_decoded_again_and_the_fingerprint_stays(folder: Path, decoded: list[str]) -> None:
    before = build_index(folder, "train").fingerprint()
    decoded.clear()
    os.utime(folder / "train/ant/z.bmp", (1, 1))
    assert build_index(folder, "train").fingerprint() == before
    assert decoded == ["z.bmp"]


def test_fingerprint_does_not_depend_on_the_place(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy", ignore=shutil.ignore_patterns(".fastdeit"))
    assert build_index(tmp_path / "copy", "train").fingerprint() == build_index(folder, "train").fingerprint()


@pytest.mark.parametrize("content", [b"", b"not parquet", "another version"], ids=["empty", "garbage", "version"])
def test_damaged_table_is_built_again(folder: Path, content: bytes | str, decoded: list[str], monkeypatch) -> None:
    if isinstance(content, str):
        monkeypatch.setattr(index_module, "VERSION", 0)
        build_index(folder, "train")
        monkeypatch.undo()
    else:
        (folder / ".fastdeit").mkdir()
        (folder / ".fastdeit/train.parquet").write_bytes(content)
    assert len(build_index(folder, "train")) == 4


def test_root_that_cannot_be_written(folder: Path, tmp_path: Path, monkeypatch, decoded: list[str]) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (folder / ".fastdeit").touch()  # no folder can be made there, not even by root
    build_index(folder, "train")
    assert [file.name for file in (tmp_path / "cache").rglob("*.parquet")] == ["train.parquet"]
    build_index(folder, "train")
    assert len(decoded) == 4


def test_given_cache_dir_is_the_only_place(folder: Path, tmp_path: Path) -> None:
    build_index(folder, "train", cache_dir=tmp_path / "here")
    assert [file.name for file in (tmp_path / "here").iterdir()] == ["train.parquet"]
    assert not (folder / ".fastdeit").exists()


def test_processes_give_the_same_table(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "_PROCESSES_FROM", 1)
    assert build_index(folder, "train", workers=2).sizes.tolist() == [[7, 3], [5, 5], [6, 8], [10, 4]]


def break_(folder: Path, name: str, content: bytes) -> Path:
    path = folder / "train/cat" / name
    path.write_bytes(content)
    return path


def test_unreadable_images_are_named(folder: Path) -> None:
    whole = save(folder / "train/cat/whole.jpg", 64, 64).read_bytes()
    bad = [break_(folder, "cut.jpg", whole[:-200]), break_(folder, "empty.jpg", b""), break_(folder, "text.png", b"hello")]
    with pytest.raises(DataError) as caught:
        build_index(folder, "train")
    message = str(caught.value)
    assert message.startswith("3 unreadable image(s)") and all(str(path) in message for path in bad)
    assert "b.png" not in message


def test_ten_bad_images_are_listed(folder: Path) -> None:
    for i in range(13):
        break_(folder, f"{i:02d}.png", b"x")
    with pytest.raises(DataError, match="and 3 more"):
        build_index(folder, "train")


def test_repairing_a_bad_image_decodes_only_it(folder: Path, decoded: list[str]) -> None:
    bad = break_(folder, "bad.png", b"x")
    with pytest.raises(DataError):
        build_index(folder, "train")
    decoded.clear()
    save(bad)
    assert len(build_index(folder, "train")) == 5
    assert decoded == ["bad.png"]


def test_decompression_bomb_is_refused_by_its_header(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "MAX_PIXELS", 47)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("was decoded"))
    assert check_file(folder / "train/cat/b.png") == "8 x 6 pixels are more than 47"


def test_missing_root(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: no such folder"):
        build_index(tmp_path / "nowhere", "train")


def test_no_train_folder(folder: Path) -> None:
    shutil.rmtree(folder / "train")
    with pytest.raises(DataError, match="has no folder 'train'"):
        build_index(folder, "val")


def test_no_class_folders(folder: Path) -> None:
    shutil.rmtree(folder / "train")
    save(folder / "train/loose.png")
    with pytest.raises(DataError, match="no class folders"):
        build_index(folder, "train")


def test_empty_class(folder: Path) -> None:
    (folder / "train/bee/only").mkdir(parents=True)
    (folder / "train/bee/readme.txt").touch()
    with pytest.raises(DataError, match="bee: no images in this class"):
        build_index(folder, "train")


def test_class_unknown_to_train(folder: Path) -> None:
    save(folder / "val/dog/x.png")
    with pytest.raises(DataError, match="classes that train does not have: dog"):
        build_index(folder, "val")


def test_broken_link(folder: Path) -> None:
    (folder / "train/cat/gone.png").symlink_to(folder / "nothing.png")
    with pytest.raises(DataError, match=r"gone\.png: cannot be read"):
        build_index(folder, "train")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("digits") / "digits")


def test_digits_are_a_stratified_split(digits: Path) -> None:
    train, val = build_index(digits, "train"), build_index(digits, "val")
    assert len(train) + len(val) == 1797
    counts = np.bincount(train.labels), np.bincount(val.labels)
    np.testing.assert_array_equal(counts[1], (counts[0] + counts[1]) // 5)
    numbers = {index.path(i).stem for index in (train, val) for i in range(len(index))}
    assert len(numbers) == 1797
    assert (train.sizes == 32).all()


def test_digits_are_gray_and_show_the_digit(digits: Path) -> None:
    from sklearn.datasets import load_digits

    data = load_digits()
    index = build_index(digits, "val")
    for row in (0, 100, 354):
        image, number = Image.open(index.path(row)), int(index.path(row).stem)
        assert image.mode == "L" and data.target[number] == index.labels[row]
        small = np.asarray(image.resize((8, 8), Image.Resampling.BOX)) / 255 * 16
        assert np.corrcoef(small.ravel(), data.images[number].ravel())[0, 1] > 0.97


def test_digits_are_written_once(digits: Path) -> None:
    stamp = (digits / "train/0").stat().st_mtime_ns
    assert write_digits(digits) == digits
    assert (digits / "train/0").stat().st_mtime_ns == stamp


def test_digits_written_by_several_at_once(tmp_path: Path) -> None:
    threads = [threading.Thread(target=write_digits, args=(tmp_path / "digits",)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [entry.name for entry in tmp_path.iterdir()] == ["digits"]
    assert len(list((tmp_path / "digits").rglob("*.png"))) == 1797


def test_digits_do_not_overwrite_a_folder_in_use(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    with pytest.raises(FileExistsError, match="cannot hold the digits"):
        write_digits(tmp_path)
    assert [entry.name for entry in tmp_path.parent.iterdir() if entry.name.startswith(f".{tmp_path.name}")] == []
