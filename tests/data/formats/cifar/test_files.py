"""CIFAR-10 and CIFAR-100: each published form, unpacked or archived, gives the same images."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from fastdeit.data.formats.cifar import files as files_module
from fastdeit.data.formats.cifar.batches import read_python
from fastdeit.data.formats.cifar.files import choose_cifar, find_cifar
from fastdeit.data.formats.listing import DataError
from fastdeit.data.index import Index
from fastdeit.data.indexing import build_index
from tests.support.cifar import (
    CLASSES10,
    CLASSES100,
    PER_FILE,
    draw_batch,
    files10,
    files100,
    pickle_array,
    pickle_dict,
    pickle_list,
    write_archive,
    write_files,
)
from tests.support.decoding import decode_by_dali

FORMS10 = {"cifar-10-python.tar.gz": files10(False), "cifar-10-binary.tar.gz": files10(True)}
FORMS100 = {"cifar-100-python.tar.gz": files100(False), "cifar-100-binary.tar.gz": files100(True)}
FORMS = FORMS10 | FORMS100
PLACES = ("folder", "parent", "archive", "renamed")


def lay_out(root: Path, archive: str, place: str) -> Path:
    """Write a form of CIFAR; return the folder that --data-path names."""
    files = FORMS[archive]
    if place == "archive":
        return write_archive(root / archive, files)
    folder = root / next(iter(files)).partition("/")[0]
    write_files(root, files)
    if place == "renamed":
        return folder.rename(root / "mine")
    return root if place == "parent" else folder


def pixels_of(index: Index, row: int) -> np.ndarray:
    whole, _ = decode_by_dali(index.encoded(np.array([row]))[0])
    return whole


@pytest.mark.parametrize("archive", FORMS)
@pytest.mark.parametrize("place", PLACES)
def test_every_form_gives_the_same_images(tmp_path: Path, archive: str, place: str) -> None:
    root = lay_out(tmp_path, archive, place)
    is_10 = archive in FORMS10
    classes = CLASSES10 if is_10 else CLASSES100
    train, val = build_index(root, "train"), build_index(root, "val")
    assert (len(train), len(val)) == (PER_FILE * (5 if is_10 else 1), PER_FILE)
    assert list(train.classes) == list(val.classes) == classes
    for index, first in ((train, 0), (val, 5 if is_10 else 1)):
        for row in (0, len(index) - 1):
            images, labels = draw_batch(first + row // PER_FILE, len(classes))
            expected = images[row % PER_FILE].reshape(3, 32, 32).transpose(1, 2, 0)
            np.testing.assert_array_equal(pixels_of(index, row), expected)
            assert index.labels[row] == labels[row % PER_FILE]
            assert index.check(row) is None
    assert train.sizes.tolist() == [[32, 32]] * len(train)


def test_a_table_that_was_stored_is_used_and_a_changed_file_is_seen(tmp_path: Path) -> None:
    root = lay_out(tmp_path, "cifar-10-binary.tar.gz", "parent")
    before = build_index(root, "train")
    assert build_index(root, "train").fingerprint() == before.fingerprint()
    file = root / "cifar-10-batches-bin" / "data_batch_1.bin"
    file.write_bytes(file.read_bytes()[: 3073 * 2])
    assert len(build_index(root, "train")) == len(before) - PER_FILE + 2


@pytest.mark.parametrize("place", ["folder", "archive"])
def test_an_exchanged_file_is_read_anew(tmp_path: Path, place: str) -> None:
    archive = "cifar-10-binary.tar.gz"
    root = lay_out(tmp_path, archive, place)
    before = build_index(root, "train")
    first = before.read(0)
    name = "cifar-10-batches-bin/data_batch_1.bin"
    files = FORMS[archive] | {name: FORMS[archive][name][3073:]}
    if place == "archive":
        write_archive(root / archive, files)
    else:
        write_files(tmp_path, files)
    after = build_index(root, "train")
    assert after.labels.tolist() == before.labels.tolist()[1:]
    assert after.read(0) == before.read(1)
    assert before.read(0) == first, "what an index has opened stays"


def test_binary_files_without_names_have_numbers_as_classes(tmp_path: Path) -> None:
    root = lay_out(tmp_path, "cifar-100-binary.tar.gz", "folder")
    (root / "fine_label_names.txt").unlink()
    assert build_index(root, "train").classes == tuple(map(str, range(PER_FILE)))


def test_both_data_sets_in_a_folder_need_a_choice(tmp_path: Path) -> None:
    for archive in ("cifar-10-python.tar.gz", "cifar-100-python.tar.gz"):
        lay_out(tmp_path, archive, "parent")
    with pytest.raises(DataError, match="--data-path must be the folder of one of them"):
        build_index(tmp_path, "train")
    chosen = choose_cifar(tmp_path, "cifar100")
    assert list(build_index(chosen, "train").classes) == CLASSES100
    assert choose_cifar(chosen, "cifar100") == chosen


def test_a_file_of_one_split_alone_is_no_data_set(tmp_path: Path) -> None:
    (tmp_path / "train").write_bytes(b"a file of the user")
    assert find_cifar(tmp_path, is_train=True) == ()


def test_a_choice_of_what_is_not_there_fails(tmp_path: Path) -> None:
    lay_out(tmp_path, "cifar-10-python.tar.gz", "archive")
    with pytest.raises(DataError, match="holds no cifar100; expected one of cifar-100-python"):
        choose_cifar(tmp_path, "cifar100")
    lay_out(tmp_path, "cifar-100-python.tar.gz", "parent")
    with pytest.raises(DataError, match="cifar-10-python.tar.gz: must be unpacked"):
        choose_cifar(tmp_path, "cifar10")


@pytest.mark.parametrize(
    ("archive", "name", "data", "fault"),
    [
        ("cifar-10-binary.tar.gz", "data_batch_2.bin", b"x" * 3074, "must have 3,073 bytes an im"),
        ("cifar-100-binary.tar.gz", "train.bin", b"", "must have 3,074 bytes an image"),
        ("cifar-10-python.tar.gz", "data_batch_3", b"\x80\x02N.", "must be a pickled dict"),
        ("cifar-10-python.tar.gz", "data_batch_3", b"\x80\x02}q\x01", "not as CIFAR publishes it"),
        ("cifar-100-python.tar.gz", "train", b"\x80\x02}q\x01.", "must hold `data`, an array"),
    ],
)
@pytest.mark.parametrize("place", ["folder", "archive"])
def test_a_damaged_file_is_named(
    tmp_path: Path, archive: str, name: str, data: bytes, fault: str, place: str
) -> None:
    files = {
        key: data if key.endswith(f"/{name}") else value for key, value in FORMS[archive].items()
    }
    root = tmp_path
    if place == "archive":
        write_archive(root / archive, files)
    else:
        write_files(root, files)
    with pytest.raises(DataError, match=rf"{name}: .*{fault}"):
        build_index(root, "train")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    root = lay_out(tmp_path, "cifar-10-python.tar.gz", "folder")
    (root / "data_batch_4").unlink()
    with pytest.raises(DataError, match="data_batch_4: cannot be read: No such file"):
        build_index(root, "train")
    files = {key: data for key, data in files10(True).items() if "batch_4" not in key}
    root = write_archive(tmp_path / "b" / "cifar-10-binary.tar.gz", files)
    with pytest.raises(DataError, match=r"holds no cifar-10-batches-bin/data_batch_4\.bin"):
        build_index(root, "train")


@pytest.mark.parametrize("kind", ["no gzip", "no tar", "truncated"])
def test_a_damaged_archive_is_named(tmp_path: Path, kind: str) -> None:
    data = {"no gzip": b"x", "no tar": gzip.compress(b"x"), "truncated": b"\x1f\x8b\x08"}[kind]
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(data)
    with pytest.raises(DataError, match=r"cifar-10-python\.tar\.gz: "):
        build_index(tmp_path, "train")


def test_an_archive_of_names_that_begin_with_a_dot_is_read(tmp_path: Path) -> None:
    archive = "cifar-100-binary.tar.gz"
    files = {f"./{name}": data for name, data in FORMS[archive].items()}
    index = build_index(write_archive(tmp_path / archive, files), "train")
    assert (len(index), list(index.classes)) == (PER_FILE, CLASSES100)


def test_a_folder_with_the_name_of_an_archive_is_a_folder(tmp_path: Path) -> None:
    archive = "cifar-100-binary.tar.gz"
    root = lay_out(tmp_path / archive, archive, "folder")
    assert len(build_index(root, "train")) == PER_FILE


def test_a_file_that_is_too_large_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = lay_out(tmp_path, "cifar-10-binary.tar.gz", "folder")
    monkeypatch.setattr(files_module, "MAX_BYTES", 3073 * PER_FILE - 1)
    with pytest.raises(DataError, match=r"data_batch_1\.bin: must be at most 18,437 bytes"):
        build_index(root, "train")


def test_a_label_of_two_bytes_is_refused() -> None:
    content = {
        b"data": pickle_array(draw_batch(0, 10)[0][:1]),
        b"labels": pickle_list([b"M\x00\x01"]),
    }
    with pytest.raises(DataError, match=r"x: must hold `labels`, .*\(got \[256\]\)"):
        read_python(pickle_dict(content), "x", "labels")


def test_a_label_that_is_no_class_is_named(tmp_path: Path) -> None:
    root = lay_out(tmp_path, "cifar-10-binary.tar.gz", "folder")
    file = root / "data_batch_1.bin"
    file.write_bytes(bytes([10]) + file.read_bytes()[1:])
    with pytest.raises(DataError, match=r"data_batch_1\.bin: image 0 has the label 10"):
        build_index(root, "train")
