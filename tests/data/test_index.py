"""The index of an image folder: its order, its table on disk, its errors, and the images of an
earlier start."""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from fastdeit.data import table
from fastdeit.data.checks import tables, work
from fastdeit.data.formats.listing import DataError, Listing
from fastdeit.data.index import Index
from fastdeit.data.indexing import build_index
from fastdeit.data.snapshot import keep_images, reconcile


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


def settle(root: Path) -> None:
    """Make everything look old, for a path that changed just now is read again."""
    for parent, folders, files in os.walk(root):
        for name in (*folders, *files, "."):
            os.utime(os.path.join(parent, name), (1e9, 1e9), follow_symlinks=False)


def path(index: Index, row: int) -> Path:
    return index.root / os.fsdecode(index.names[row].as_py())


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> list[Listing]:
    """The listings that are made from here on."""
    listings: list[Listing] = []
    build = tables.build_table

    def spy(listing: Listing, *arguments: Any) -> pa.Table:
        listings.append(listing)
        return build(listing, *arguments)

    monkeypatch.setattr("fastdeit.data.indexing.build_table", spy)
    return listings


def test_order_and_labels_are_those_of_image_folder(folder: Path) -> None:
    index = build_index(folder, "train")
    expected = ImageFolder(str(folder / "train"))
    assert list(index.classes) == expected.classes
    assert [
        (str(path(index, i)), label) for i, label in enumerate(index.labels.tolist())
    ] == expected.samples
    assert [tuple(size) for size in index.sizes.tolist()] == [
        Image.open(name).size[::-1] for name, _ in expected.samples
    ]
    assert (index.labels.dtype, index.sizes.dtype) == (np.int64, np.int32)


def test_labels_of_val_are_places_in_the_classes_of_train(folder: Path) -> None:
    val = build_index(folder, "val")
    assert val.classes == ("ant", "cat")
    assert val.labels.tolist() == [1]


def test_labels_are_places_in_the_given_classes(folder: Path) -> None:
    assert build_index(folder, "val", classes=["bee", "cat"]).labels.tolist() == [1]


def test_dali_gets_paths_and_reads_the_files(folder: Path) -> None:
    index = build_index(folder, "train")
    assert index.feeds_paths
    names = [bytes(name).rstrip(b"\0").decode() for name in index.encoded(np.array([2, 0]))]
    assert names == [str(path(index, 2)), str(path(index, 0))]
    assert index.read(2) == path(index, 2).read_bytes()


def test_check_of_a_row_returns_its_fault(folder: Path) -> None:
    index = build_index(folder, "train")
    assert index.check(0) is None
    save(path(index, 0), 30, 40, orientation=1)
    assert "(30, 40) high and wide, the index has (7, 3)" in str(index.check(0))
    path(index, 0).write_bytes(b"x")
    assert "is no JPEG" in str(index.check(0))
    path(index, 0).unlink()
    assert index.check(0) == "cannot be read: No such file or directory"


def test_exif_rotation_is_not_applied(folder: Path) -> None:
    save(folder / "val/cat/v.jpg", 12, 20, orientation=6)
    assert build_index(folder, "val").sizes.tolist() == [[12, 20]]


def test_unusual_file_names_work(folder: Path) -> None:
    (folder / "val/cat/v.jpg").rename(os.fsdecode(os.fsencode(folder) + b"/val/cat/v \xff.jpg"))
    assert path(build_index(folder, "val"), 0).is_file()
    assert len(build_index(folder, "val")) == 1


def test_a_second_start_decodes_nothing(folder: Path, decoded: list[str]) -> None:
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
    sizes = {path(index, i).name: tuple(index.sizes[i].tolist()) for i in range(len(index))}
    assert sizes == {"new.png": (2, 2), "z.bmp": (7, 3), "b.png": (30, 8), "a.JPEG": (10, 4)}
    assert index.fingerprint() != before


def test_touched_file_is_decoded_again_and_the_fingerprint_stays(
    folder: Path, decoded: list[str]
) -> None:
    before = build_index(folder, "train").fingerprint()
    decoded.clear()
    os.utime(folder / "train/ant/z.bmp", (1, 1))
    assert build_index(folder, "train", again=True).fingerprint() == before
    assert decoded == ["z.bmp"]


def test_unchanged_folders_are_not_listed_again(folder: Path, listed: list[Listing]) -> None:
    settle(folder)
    first = build_index(folder, "train")
    assert len(listed) == 1
    again = build_index(folder, "train")
    assert len(listed) == 1
    assert (
        again.fingerprint() == first.fingerprint() and again.sizes.tolist() == first.sizes.tolist()
    )


def added(folder: Path) -> None:
    save(folder / "train/cat/deep/new.png")


def removed(folder: Path) -> None:
    (folder / "train/cat/deep/er/a.JPEG").unlink()


def replaced(folder: Path) -> None:
    save(folder / "new.png", 90, 90).rename(folder / "train/cat/b.png")


def new_class(folder: Path) -> None:
    save(folder / "train/bee/b.png", 9, 9)


@pytest.mark.parametrize("change", [added, removed, replaced, new_class])
def test_changes_are_detected(folder: Path, change, listed: list[Listing]) -> None:
    settle(folder)
    before = build_index(folder, "train")
    change(folder)
    after = build_index(folder, "train")
    assert len(listed) == 2 and after.fingerprint() != before.fingerprint()


def test_overwriting_in_place_is_detected_when_all_files_are_checked_again(folder: Path) -> None:
    settle(folder)
    before = build_index(folder, "train")
    file = folder / "train/cat/b.png"
    file.write_bytes(save(folder / "other.png", 12, 13).read_bytes())
    assert build_index(folder, "train").fingerprint() == before.fingerprint()
    assert [12, 13] in build_index(folder, "train", again=True).sizes.tolist()
    assert [12, 13] in build_index(folder, "train").sizes.tolist()


def test_a_folder_that_changed_a_moment_ago_is_listed_again(
    folder: Path, listed: list[Listing]
) -> None:
    build_index(folder, "train")
    build_index(folder, "train")
    assert len(listed) == 2


def test_a_folder_that_cannot_be_listed_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scandir = os.scandir

    def refuse(place: Any) -> Any:
        if os.fsencode(place).endswith(b"deep"):
            raise PermissionError(13, "Permission denied", place)
        return scandir(place)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match="cat/deep: cannot be listed: Permission denied"):
        build_index(folder, "train")


def test_links_in_a_circle_are_followed_once(folder: Path) -> None:
    (folder / "train/cat/deep/up").symlink_to(folder / "train/cat")
    assert len(build_index(folder, "train")) == 4


def test_a_png_with_the_name_of_a_jpeg_is_a_png(folder: Path) -> None:
    # ILSVRC has one: n02105855_2933.JPEG
    save(folder / "train/cat/odd.png", 9, 5)
    (folder / "train/cat/odd.png").rename(folder / "train/cat/odd.JPEG")
    index = build_index(folder, "train")
    row = [index.name(row) for row in range(len(index))].index("train/cat/odd.JPEG")
    assert index.read(row).startswith(b"\x89PNG") and index.sizes[row].tolist() == [9, 5]


def test_splits_and_images_may_be_links_to_another_place(folder: Path, tmp_path: Path) -> None:
    far = tmp_path / "far"
    for split in ("train", "val"):
        for image in sorted((folder / split).rglob("*.*")):
            place = far / image.relative_to(folder)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(image)
        (tmp_path / "linked").mkdir(exist_ok=True)
        (tmp_path / "linked" / split).symlink_to(far / split)
    linked = build_index(tmp_path / "linked", "train")
    assert linked.fingerprint() == build_index(folder, "train").fingerprint()
    save(folder / "train/cat/more.png", 3, 3)
    (far / "train/cat/more.png").symlink_to(folder / "train/cat/more.png")
    assert len(build_index(tmp_path / "linked", "train")) == len(linked) + 1


def test_linked_class_folder(folder: Path) -> None:
    shutil.move(folder / "train/cat", folder / "elsewhere")
    (folder / "train/cat").symlink_to(folder / "elsewhere")
    assert len(build_index(folder, "train")) == 4


def test_the_fingerprint_does_not_depend_on_the_folder(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy", ignore=shutil.ignore_patterns(".fastdeit"))
    assert (
        build_index(tmp_path / "copy", "train").fingerprint()
        == build_index(folder, "train").fingerprint()
    )


@pytest.mark.parametrize(
    "content", [b"", b"not parquet", "another version"], ids=["empty", "garbage", "version"]
)
def test_damaged_table_is_built_again(
    folder: Path, content: bytes | str, decoded: list[str], monkeypatch
) -> None:
    if isinstance(content, str):
        monkeypatch.setattr(table, "VERSION", 0)
        build_index(folder, "train")
        monkeypatch.undo()
    else:
        (folder / ".fastdeit").mkdir()
        (folder / ".fastdeit/train.parquet").write_bytes(content)
    assert len(build_index(folder, "train")) == 4


def test_a_root_that_cannot_be_written_uses_the_users_cache(
    folder: Path, tmp_path: Path, monkeypatch, decoded: list[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (folder / ".fastdeit").touch()  # no folder can be made there, not even by root
    build_index(folder, "train")
    assert [file.name for file in (tmp_path / "cache").rglob("*.parquet")] == ["train.parquet"]
    build_index(folder, "train")
    assert len(decoded) == 4


def test_a_given_cache_dir_is_the_only_place(folder: Path, tmp_path: Path) -> None:
    build_index(folder, "train", cache_dir=tmp_path / "here")
    assert {file.name for file in (tmp_path / "here").iterdir()} == {
        "train.parquet",
        ".train.parquet.lock",
    }
    assert not (folder / ".fastdeit").exists()


def test_processes_give_the_same_table(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "_PROCESSES_FROM", 1)
    assert build_index(folder, "train", workers=2).sizes.tolist() == [
        [7, 3],
        [5, 5],
        [6, 8],
        [10, 4],
    ]


def break_(folder: Path, name: str, content: bytes) -> Path:
    file = folder / "train/cat" / name
    file.write_bytes(content)
    return file


def test_unreadable_images_are_named(folder: Path) -> None:
    whole = save(folder / "train/cat/whole.jpg", 64, 64).read_bytes()
    bad = [
        break_(folder, "cut.jpg", whole[:-200]),
        break_(folder, "empty.jpg", b""),
        break_(folder, "text.png", b"hello"),
    ]
    with pytest.raises(DataError) as caught:
        build_index(folder, "train")
    message = str(caught.value)
    assert message.startswith(f"{folder}: 3 bad image(s)") and all(
        str(file.relative_to(folder)) in message for file in bad
    )
    assert "b.png" not in message and "--bad-images skip" in message


def test_bad_images_can_be_excluded(folder: Path, decoded: list[str]) -> None:
    before = build_index(folder, "train").fingerprint()
    break_(folder, "text.png", b"hello")
    (folder / "train/cat/gone.png").symlink_to("nothing")
    os.mkfifo(folder / "train/cat/fifo.jpg")
    for known in (set(), {"text.png"}):  # the others may be well the next time
        decoded.clear()
        index = build_index(folder, "train", bad_images="skip")
        assert (len(index), index.fingerprint()) == (4, before)
        assert [line.split(": ")[0] for line in index.excluded] == [
            f"train/cat/{n}" for n in ("fifo.jpg", "gone.png", "text.png")
        ]
        assert not known & set(decoded)


def test_a_printed_index_is_one_short_line(folder: Path) -> None:
    shown = repr(build_index(folder, "train"))
    assert shown == f"<Index of train in {folder}: 4 images, 2 classes>"


def test_a_split_without_good_images_is_refused(folder: Path) -> None:
    (folder / "val/cat/v.jpg").write_bytes(b"")
    with pytest.raises(
        DataError, match=r"'val' holds no image that can be used\n.*v\.jpg: is empty"
    ):
        build_index(folder, "val", bad_images="skip")


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


def test_a_missing_root_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: no such folder"):
        build_index(tmp_path / "nowhere", "train")


def test_a_missing_train_folder_is_refused(folder: Path) -> None:
    shutil.rmtree(folder / "train")
    with pytest.raises(DataError, match="holds no 'train'; found val; expected"):
        build_index(folder, "val")


def test_a_split_without_class_folders_is_refused(folder: Path) -> None:
    shutil.rmtree(folder / "train")
    save(folder / "train/loose.png")
    with pytest.raises(DataError, match="no class folders"):
        build_index(folder, "train")


def test_a_class_without_images_is_refused(folder: Path) -> None:
    (folder / "train/bee/only").mkdir(parents=True)
    (folder / "train/bee/readme.txt").touch()
    with pytest.raises(
        DataError,
        match=r"bee: no images in this class .*; it holds train/bee/readme\.txt; add images",
    ):
        build_index(folder, "train")


def test_a_class_that_train_does_not_have_is_refused(folder: Path) -> None:
    save(folder / "val/dog/x.png")
    with pytest.raises(DataError, match="classes that are not among the 2 of train: dog"):
        build_index(folder, "val")
    (folder / "val/dog").rename(folder / "val/CAT")
    with pytest.raises(DataError, match=r"of train: CAT \(another case than 'cat'\)"):
        build_index(folder, "val")


def test_a_broken_link_is_a_bad_image(folder: Path) -> None:
    (folder / "train/cat/gone.png").symlink_to(folder / "nothing.png")
    with pytest.raises(DataError, match=r"gone\.png: cannot be read"):
        build_index(folder, "train")


@pytest.mark.parametrize("name", ["validation", "test"])
def test_val_has_other_names(folder: Path, name: str) -> None:
    (folder / "val").rename(folder / name)
    assert build_index(folder, "val").name(0) == f"{name}/cat/v.jpg"


def test_a_run_keeps_the_images_that_it_began_with(folder: Path, tmp_path: Path) -> None:
    whole = build_index(folder, "train")
    keep_images(whole, tmp_path / "images.parquet")
    assert reconcile(whole, tmp_path / "images.parquet") == (whole, {})
    (folder / "train/cat/b.png").unlink()
    (folder / "train/ant/z.bmp").write_bytes(b"")
    (folder / "train/cat/a.WebP").write_bytes(save(folder / "bigger.webp", 40, 41).read_bytes())
    save(folder / "train/cat/new.png", 20, 20)
    index = build_index(folder, "train", bad_images="skip", again=True)
    then, gone = reconcile(index, tmp_path / "images.parquet")
    assert then.fingerprint() == whole.fingerprint() != index.fingerprint()
    assert (
        then.sizes.tolist() == whole.sizes.tolist()
        and then.labels.tolist() == whole.labels.tolist()
    )
    assert [then.name(row) for row in gone] == [
        "train/ant/z.bmp",
        "train/cat/a.WebP",
        "train/cat/b.png",
    ]
