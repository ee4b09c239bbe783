"""Members of a shard joined to samples: keys with dots, labels in every form, and no image that
vanishes."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastdeit.data.formats.listing import DataError
from fastdeit.data.index import Index
from fastdeit.data.indexing import build_index


def picture(number: int) -> bytes:
    """Return a JPEG image of 20 + number rows."""
    buffer = io.BytesIO()
    Image.fromarray(np.full((20 + number, 24, 3), 9, np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def index_of(root: Path, members: dict[str, bytes]) -> Index:
    """Write one shard; an image's content is its place among the members. Return the index."""
    path = root / "train/0.tar"
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number, (name, content) in enumerate(members.items()):
            data = content or picture(number)
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return build_index(root, "train", bad_images="skip", again=True)


def add_member(root: Path, name: str, data: bytes) -> None:
    with tarfile.open(root / "train/0.tar", "a") as tar:
        member = tarfile.TarInfo(name)
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))


def listed(index: Index) -> dict[str, str]:
    """Return the class of each image by its name in the shard."""
    names = [index.name(row).removeprefix("train/0.tar/") for row in range(len(index))]
    classes = [index.classes[label] for label in index.labels]
    return dict(zip(names, classes, strict=True))


IMAGE = b""
KEYS: dict[str, tuple[dict[str, bytes], dict[str, str]]] = {
    "dots": (
        {"scan_v1.0_01.jpg": IMAGE, "scan_v1.0_01.cls": b"0", "scan_v1.0_02.jpg": IMAGE}
        | {"scan_v1.0_02.cls": b"1"},
        {"scan_v1.0_01.jpg": "0", "scan_v1.0_02.jpg": "1"},
    ),
    "a number": ({"22.05.jpg": IMAGE, "22.05.cls": b"0"}, {"22.05.jpg": "0"}),
    "input": (
        {"01.cls": b"0", "01.input.jpg": IMAGE, "02.input.jpg": IMAGE, "02.cls": b"1"},
        {"01.input.jpg": "0", "02.input.jpg": "1"},
    ),
    "folders with dots": ({"a.b/1.jpg": IMAGE, "a.b/1.cls": b"0"}, {"a.b/1.jpg": "0"}),
    "the longest key has the label": (
        {"a.jpg": IMAGE, "a.b.jpg": IMAGE, "a.cls": b"0", "a.b.cls": b"1"},
        {"a.jpg": "0", "a.b.jpg": "1"},
    ),
    "upper case": ({"A.JPG": IMAGE, "A.CLS": b"0"}, {"A.JPG": "0"}),
    "hidden": ({"x/.a.jpg": IMAGE, "x/.a.cls": b"0"}, {"x/.a.jpg": "0"}),
    "the same key in two folders": (
        {"x/1.jpg": IMAGE, "y/1.jpg": IMAGE, "x/1.cls": b"0", "y/1.cls": b"1"},
        {"x/1.jpg": "0", "y/1.jpg": "1"},
    ),
}


@pytest.mark.parametrize("kind", KEYS)
def test_images_and_labels_are_joined_by_key(tmp_path: Path, kind: str) -> None:
    members, expected = KEYS[kind]
    index = index_of(tmp_path, members)
    assert listed(index) == expected and not index.excluded


def test_the_image_of_a_sample_is_the_one_with_the_shortest_name(tmp_path: Path) -> None:
    index = index_of(
        tmp_path, {"1.mask.png": IMAGE, "1.jpg": IMAGE, "1.cls": b"0", "1.depth.png": IMAGE}
    )
    assert listed(index) == {"1.jpg": "0"}
    assert [line.split(": ")[1] for line in index.excluded] == [
        "is the second image of its sample, the first is 1.jpg"
    ] * 2


EXCLUDED = {
    "no label": (
        {"b.c.jpg": IMAGE},
        "b.c.jpg",
        "has no label: no b.c.cls, no b.c.json that has one",
    ),
    "extension": ({"b.tif": IMAGE, "b.cls": b"0"}, "b.tif", "has the extension .tif; those that"),
    "json without label": ({"b.jpg": IMAGE, "b.json": b"{}"}, "b.jpg", "has no label"),
    "empty": ({"b.jpg": IMAGE, "b.cls": b" \n"}, "b.cls", "is no label: must be one line"),
    "two lines": ({"b.jpg": IMAGE, "b.cls": b"1\n2"}, "b.cls", r"(got '1\n2')"),
    "several": (
        {"b.jpg": IMAGE, "b.json": b'{"label": [1]}'},
        "b.json",
        "label: a label must be a whole number or a name (got [1])",
    ),
}


@pytest.mark.parametrize("kind", EXCLUDED)
def test_no_image_vanishes(tmp_path: Path, kind: str) -> None:
    members, name, reason = EXCLUDED[kind]
    index = index_of(tmp_path, {"a.jpg": IMAGE, "a.cls": b"0", **members})
    assert listed(index) == {"a.jpg": "0"}
    (line,) = (line for line in index.excluded if line.startswith(f"train/0.tar/{name}: "))
    assert reason in line


LABELS: dict[str, tuple[bytes, str]] = {
    '{"label": "3"}': (b'{"label": "3"}', "3"),
    '{"label": 3.0}': (b'{"label": 3.0}', "3"),
    '{"label": "dog"}': (b'{"label": "dog"}', "dog"),
    '{"class": 3}': (b'{"class": 3}', "3"),
    '{"label": null, "cls": 3}': (b'{"label": null, "cls": 3}', "3"),
    '{"label": "dog", "cls": 3}': (b'{"label": "dog", "cls": 3}', "3"),
    '{"label": [0, 1], "cls": 3}': (b'{"label": [0, 1], "cls": 3}', "3"),
    "3.0": (b"3.0", "3"),
    '"dog"': (b'"dog"', "dog"),
    "a byte order mark": (b'\xef\xbb\xbf{"label": 3}', "3"),
}


@pytest.mark.parametrize("kind", LABELS)
def test_labels_in_json_follow_the_rule_of_lists(tmp_path: Path, kind: str) -> None:
    content, expected = LABELS[kind]
    index = index_of(tmp_path, {"a.jpg": IMAGE, "a.json": content})
    assert listed(index) == {"a.jpg": expected}


@pytest.mark.parametrize(("content", "expected"), [(b"dog\n", "dog"), (b"3.0", "3"), (b"+3", "3")])
def test_labels_in_cls_follow_the_rule_of_lists(
    tmp_path: Path, content: bytes, expected: str
) -> None:
    assert listed(index_of(tmp_path, {"a.jpg": IMAGE, "a.cls": content})) == {"a.jpg": expected}


def test_a_name_among_numbers_is_refused_by_its_sample(tmp_path: Path) -> None:
    members = {f"{number}.cls": b"%d" % number for number in range(3)} | {"3.cls": b"dog"}
    images = {f"{number}.jpg": IMAGE for number in range(4)}
    with pytest.raises(DataError, match=r"train/0\.tar/3\.jpg has the label 'dog', which is no"):
        index_of(tmp_path, members | images)


def test_labels_without_an_image_are_noted(tmp_path: Path) -> None:
    members = {"a.jpg": IMAGE, "a.cls": b"0", "b.img": b"x", "b.cls": b"0", "c.tif": IMAGE}
    index = index_of(tmp_path, members | {"c.cls": b"1"})
    assert index.notes == (
        "labels without an image: 1, such as train/0.tar/b (other members: .img (1))",
    )


def test_names_that_are_no_utf8_are_reported(tmp_path: Path) -> None:
    odd = "K\udce4se"
    index = index_of(tmp_path, {f"{odd}.jpg": IMAGE, f"{odd}.cls": b"0", f"{odd}.mask.jpg": IMAGE})
    assert len(index) == 1
    assert index.excluded[0].endswith(r"the first is K\xe4se.jpg")


def test_shards_without_an_image_are_refused_with_what_they_hold(tmp_path: Path) -> None:
    members = {"1.cls": b"0", "1.npy": b"x", "2.npy": b"x", "README": b"x"}
    message = r"no image in train/0\.tar: .* \(other members: \.npy \(2\), no extension \(1\)\)"
    with pytest.raises(DataError, match=message):
        index_of(tmp_path, members)


def test_shards_without_a_usable_image_are_refused_with_the_reasons(tmp_path: Path) -> None:
    message = r"'train' holds no image that can be used\n.*a\.jpg: has no label"
    with pytest.raises(DataError, match=message):
        index_of(tmp_path, {"a.jpg": IMAGE})


def test_an_image_whose_name_has_two_labels_is_excluded(tmp_path: Path) -> None:
    """`tar -r` and several writers repeat names; the first image must not get the last label."""
    index_of(tmp_path, {"a.jpg": IMAGE, "a.cls": b"0", "b.jpg": IMAGE, "b.cls": b"1"})
    add_member(tmp_path, "a.jpg", picture(7))
    add_member(tmp_path, "a.cls", b"1")
    add_member(tmp_path, "b.cls", b"1")
    index = build_index(tmp_path, "train", bad_images="skip", again=True)
    assert listed(index) == {"b.jpg": "1"}
    assert len(index.excluded) == 3
    assert "a.jpg: has two labels: its name is there twice" in index.excluded[0]
    assert "a.cls: is there twice, with the labels '0' and '1'" in " ".join(index.excluded)


def test_a_shard_without_a_member_is_no_fault(tmp_path: Path) -> None:
    """WebDataset's ShardWriter opens its first shard before it has a sample."""
    index_of(tmp_path, {"a.jpg": IMAGE, "a.cls": b"0"})
    tarfile.open(tmp_path / "train/1.tar", "w").close()
    index = build_index(tmp_path, "train", bad_images="error", again=True)
    assert listed(index) == {"a.jpg": "0"}


def test_members_of_a_sample_may_lie_far_apart(tmp_path: Path) -> None:
    members = {"a.jpg": IMAGE, "b.jpg": IMAGE, "b.cls": b"1", "a.cls": b"0"}
    assert listed(index_of(tmp_path, members)) == {"a.jpg": "0", "b.jpg": "1"}
