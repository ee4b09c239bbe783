"""MNIST's files: read as they come, plain or gzipped; what is damaged is refused; DALI shows the
same pixels."""

import gzip
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest

from fastdeit.data.formats.listing import DataError
from fastdeit.data.indexing import build_index
from tests.support.decoding import decode_by_dali


def idx(array: np.ndarray) -> bytes:
    return (
        struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
        + array.astype(np.uint8).tobytes()
    )


def write_idx(
    root: Path, split: str, count: int, packed: bool = False, side: tuple[int, int] = (9, 7)
) -> np.ndarray:
    """Write random images under MNIST's names; return them."""
    images = np.random.default_rng(count).integers(0, 256, (count, *side), dtype=np.uint8)
    root.mkdir(exist_ok=True)
    for name, array in (("images-idx3", images), ("labels-idx1", np.arange(count) % 5)):
        data = idx(array)
        file = root / f"{split}-{name}-ubyte{'.gz' if packed else ''}"
        file.write_bytes(gzip.compress(data) if packed else data)
    return images


@pytest.mark.parametrize("packed", [False, True])
def test_images_and_labels_are_read(tmp_path: Path, packed: bool) -> None:
    images = write_idx(tmp_path, "train", 12, packed)
    write_idx(tmp_path, "t10k", 3, packed)
    index, val = build_index(tmp_path, "train"), build_index(tmp_path, "val")
    assert (index.kind, index.classes, index.feeds_paths) == ("idx", tuple("01234"), False)
    assert (
        index.labels.tolist() == [row % 5 for row in range(12)]
        and index.sizes.tolist() == [[9, 7]] * 12
    )
    assert len(val) == 3 and val.classes == index.classes
    fed = index.encoded(np.array([4, 11]))
    assert bytes(fed[1]) == b"P5 7 9 255\n" + images[11].tobytes() == index.read(11)
    assert index.num_bytes.tolist() == [len(fed[0])] * 12
    whole, window = decode_by_dali(fed[0])
    np.testing.assert_array_equal(whole, np.repeat(images[4][..., None], 3, 2))
    np.testing.assert_array_equal(window, whole[1:4, 2:6])
    assert index.check(4) is None


def test_the_usual_file_names_are_found(tmp_path: Path) -> None:
    write_idx(tmp_path, "emnist-letters-train", 4)
    write_idx(tmp_path, "emnist-letters-test", 2)
    assert (len(build_index(tmp_path, "train")), len(build_index(tmp_path, "val"))) == (4, 2)


def test_litter_of_macos_is_ignored(tmp_path: Path) -> None:
    write_idx(tmp_path, "train", 5)
    (tmp_path / f"._{IMAGES}").write_bytes(b"\0\5\x16\7")
    assert len(build_index(tmp_path, "train")) == 5


def test_labels_that_begin_at_1_are_noted(tmp_path: Path) -> None:
    write_idx(tmp_path, "train", 5)
    (tmp_path / LABELS).write_bytes(idx(np.array([1, 2, 3, 1, 2])))
    (note,) = build_index(tmp_path, "train").notes
    assert note.startswith("no training image has the class 0, of 4 classes")


def test_classes_may_have_names(tmp_path: Path) -> None:
    write_idx(tmp_path, "train", 5)
    (tmp_path / "classes.txt").write_text("\n".join(["top", "coat", "bag", "boot", "shoe"]))
    assert build_index(tmp_path, "train").classes[4] == "shoe"
    (tmp_path / "classes.txt").write_text("top\ncoat\n")
    with pytest.raises(DataError, match="has the label 2, not one of the 2 classes: top, coat"):
        build_index(tmp_path, "train")


IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
DAMAGES = {
    "magic": (
        IMAGES,
        lambda data: b"\0\0\x0d\x03" + data[4:],
        r"must begin with 00 00 08 03, .* \(got 00 00 0d 03\)",
    ),
    "axes": (IMAGES, lambda data: b"\0\0\x08\x01" + data[4:], "must begin with 00 00 08 03"),
    "empty": (LABELS, lambda data: b"", "must begin with 00 00 08 01"),
    "truncated": (
        IMAGES,
        lambda data: data[:-1],
        r"has 771 bytes, its header of \[12, 9, 7\] asks for 772",
    ),
    "too-large-header": (IMAGES, lambda data: data[:4] + b"\xff" * 12 + data[16:], "asks for"),
    "count": (LABELS, lambda data: idx(np.zeros(11)), "has 11 labels for the 12 images"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damaged_files_are_refused(tmp_path: Path, kind: str) -> None:
    write_idx(tmp_path, "train", 12)
    name, damage, message = DAMAGES[kind]
    (tmp_path / name).write_bytes(damage((tmp_path / name).read_bytes()))
    with pytest.raises(DataError, match=message):
        build_index(tmp_path, "train")


@pytest.mark.parametrize("data", [b"", b"plain", None], ids=["empty", "no-gzip", "truncated"])
def test_a_damaged_gzip_file_is_refused(tmp_path: Path, data: bytes | None) -> None:
    write_idx(tmp_path, "train", 12, packed=True)
    file = tmp_path / f"{IMAGES}.gz"
    file.write_bytes(file.read_bytes()[:-9] if data is None else data)
    with pytest.raises(DataError, match=f"{IMAGES}.gz"):
        build_index(tmp_path, "train")


def test_images_without_labels_are_refused(tmp_path: Path) -> None:
    write_idx(tmp_path, "train", 12)
    (tmp_path / LABELS).unlink()
    with pytest.raises(DataError, match=f"there is no {LABELS} beside it"):
        build_index(tmp_path, "train")


def test_a_file_that_is_gone_later_is_a_fault(tmp_path: Path) -> None:
    write_idx(tmp_path, "train", 12)
    index = build_index(tmp_path, "train")
    (tmp_path / IMAGES).unlink()
    assert "cannot be read" in str(index.check(3))


def test_an_exchanged_file_is_read_anew(tmp_path: Path) -> None:
    write_idx(tmp_path, "train", 12)
    before = build_index(tmp_path, "train")
    first = before.read(0)
    content = bytearray((tmp_path / IMAGES).read_bytes())
    content[-3] ^= 255
    (tmp_path / IMAGES).write_bytes(content)
    after = build_index(tmp_path, "train")
    assert after.read(11) != before.read(11) and after.read(0) == first


def test_an_index_that_has_read_images_can_be_sent_to_a_process(tmp_path: Path) -> None:
    write_idx(tmp_path, "train", 4)
    index = build_index(tmp_path, "train")
    rows = np.arange(4)
    before = index.encoded(rows)
    for mine, sent in zip(before, pickle.loads(pickle.dumps(index)).encoded(rows), strict=True):
        np.testing.assert_array_equal(mine, sent)
