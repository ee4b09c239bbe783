"""WebDataset shards: which samples there are, their labels, what is wrong with a shard, and that
DALI reads them in place."""

import io
import json
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastdeit.data.formats.listing import DataError
from fastdeit.data.formats.shards import samples as samples_module
from fastdeit.data.formats.shards import scan as scan_module
from fastdeit.data.formats.shards.patterns import expand_pattern
from fastdeit.data.indexing import build_index
from fastdeit.data.snapshot import keep_images, reconcile
from tests.support.decoding import decode_by_dali

Members = dict[str, bytes]


def picture(number: int, kind: str = "JPEG") -> bytes:
    """Return an image of 20 + number rows."""
    pixels = np.random.default_rng(number).integers(0, 256, (20 + number, 24, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def write_tar(path: Path, members: Members, format: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def samples(numbers: range, labels: int = 3) -> Members:
    members: Members = {}
    for number in numbers:
        members |= {
            f"{number:04}.jpg": picture(number),
            f"{number:04}.cls": str(number % labels).encode(),
        }
    return members


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for shard in range(3):
        write_tar(tmp_path / f"train/s-{shard:02}.tar", samples(range(shard * 4, shard * 4 + 4)))
    write_tar(tmp_path / "val/s-00.tar", samples(range(3)))
    return tmp_path


def test_samples_of_a_folder_of_shards_are_listed(root: Path) -> None:
    index = build_index(root, "train")
    assert (index.kind, index.feeds_paths, index.classes) == ("shards", False, ("0", "1", "2"))
    assert index.labels.tolist() == [number % 3 for number in range(12)]
    assert index.sizes.tolist() == [[20 + number, 24] for number in range(12)]
    assert index.name(5) == "train/s-01.tar/0005.jpg"
    assert index.shards == ("train/s-00.tar", "train/s-01.tar", "train/s-02.tar")
    assert build_index(root, "val").classes == index.classes


def test_ranges_of_shards_are_the_images_and_dali_decodes_them(root: Path) -> None:
    index, rows = build_index(root, "train"), np.array([7, 0, 11, 7])
    fed = index.encoded(rows)
    assert [bytes(data) for data in fed] == [picture(number) for number in rows.tolist()]
    assert [index.read(row) for row in rows.tolist()] == [bytes(data) for data in fed]
    # a process that it is sent to opens the shards itself
    sent = pickle.loads(pickle.dumps(index)).encoded(rows)
    assert [bytes(data) for data in sent] == [bytes(data) for data in fed]
    assert not any(data.flags.owndata or data.flags.writeable for data in fed)
    whole, window = decode_by_dali(fed[0])
    np.testing.assert_array_equal(
        whole, np.asarray(Image.open(io.BytesIO(picture(7))).convert("RGB"))
    )
    np.testing.assert_array_equal(window, whole[1:4, 2:6])


@pytest.mark.parametrize(
    "split",
    [
        "train/s-{00..02}.tar",
        "train/s-{00,01,02}.tar",
        "train/s-0{0,{1..2}}.tar",
        "train/*.tar",
        "train/s-0[0-2].tar",
    ],
)
def test_patterns_are_expanded(root: Path, split: str) -> None:
    assert len(build_index(root, split)) == 12


@pytest.mark.parametrize("split", ["train[1]", "train{a}", "s[0].tar", "l[0].csv"])
def test_a_name_that_looks_like_a_pattern_is_a_name(tmp_path: Path, split: str) -> None:
    folder = tmp_path / "set[2]"
    if split.endswith(".tar"):
        write_tar(folder / split, samples(range(2)))
    else:
        image = folder / "train[1]" / "a" / "0.jpg"
        image.parent.mkdir(parents=True)
        image.write_bytes(picture(0))
        image.parent.parent.rename(folder / (split if "train" in split else "x"))
    if split.endswith(".csv"):
        (folder / split).write_text("path,label\nx/a/0.jpg,0\n")
    assert len(build_index(folder, split)) == (2 if split.endswith(".tar") else 1)


def test_a_pattern_that_names_a_missing_shard_is_refused(root: Path) -> None:
    with pytest.raises(
        DataError,
        match=r"s-03\.tar: no such file; the pattern 'train/s-\{00\.\.03\}\.tar' names it",
    ):
        build_index(root, "train/s-{00..03}.tar")
    with pytest.raises(DataError, match="nothing matches"):
        build_index(root, "train/x*.tar")
    with pytest.raises(DataError, match="must be a pattern of at most 100000 names"):
        expand_pattern(root, "{0..99999}-{0..99999}.tar")
    with pytest.raises(DataError, match="must be a rising range"):
        expand_pattern(root, "{9..1}.tar")


def test_shards_of_several_splits_may_lie_in_one_folder(root: Path) -> None:
    for number, shard in enumerate(sorted((root / "train").iterdir())):
        shard.rename(root / f"set-train-{number:06}.tar")
    (root / "train").rmdir()
    (root / "val/s-00.tar").rename(root / "set-validation-000000.tar")
    (root / "val").rmdir()
    assert (len(build_index(root, "train")), len(build_index(root, "val"))) == (12, 3)


@pytest.mark.parametrize("name", ["train.tar", "TRAIN-0.TAR", "set.train.0.tar"])
def test_shards_beside_other_files_are_found_by_their_names(tmp_path: Path, name: str) -> None:
    write_tar(tmp_path / name, samples(range(3)))
    for other in ("train-guitar", "retrain.tar", "train.md"):
        (tmp_path / other).write_bytes(b"no tar")
    assert len(build_index(tmp_path, "train" if "train" in name else "TRAIN")) == 3


LABELS: dict[str, tuple[Members, list[str]]] = {
    "json-number": ({"a.json": b'{"label": 2}', "b.json": b'{"cls": 0, "label": "x"}'}, ["2", "0"]),
    "json-name": (
        {"a.json": b'{"class_name": "cat"}', "b.json": b'{"class": "ant"}'},
        ["cat", "ant"],
    ),
    "cls-first": ({"a.json": b'{"label": 2}', "a.cls": b" 1\n", "b.cls": b"0"}, ["1", "0"]),
    "json-no-label": (
        {"a.json": b"[1]", "a.cls": b"1", "b.json": b"{}", "b.cls": b"0"},
        ["1", "0"],
    ),
}


@pytest.mark.parametrize("kind", LABELS)
def test_labels_come_from_cls_and_json_members(tmp_path: Path, kind: str) -> None:
    members, names = LABELS[kind]
    write_tar(
        tmp_path / "train/0.tar", {"a.JPG": picture(0), **members, "b.png": picture(1, "PNG")}
    )
    index = build_index(tmp_path, "train")
    assert [index.classes[label] for label in index.labels.tolist()] == names


def test_classes_may_be_named_beside_the_shards(root: Path) -> None:
    (root / "train/classes.txt").write_text("ant\nbee\ncat\ndog\n")
    assert build_index(root, "train").classes == ("ant", "bee", "cat", "dog")
    assert build_index(root, "val").classes == ("ant", "bee", "cat", "dog")
    (root / "train/classes.txt").write_text("ant\nbee\n")
    with pytest.raises(
        DataError, match=r"s-00\.tar/0002\.jpg has the label 2, not one of the 2 classes: ant, bee"
    ):
        build_index(root, "train")
    (root / "train/classes.txt").write_text("ant\nant\n")
    with pytest.raises(DataError, match="empty or repeated"):
        build_index(root, "train")


@pytest.mark.parametrize(
    ("label", "message"), [("-1", "label -1; "), ("9" * 30, "label 9{30}; a label must be")]
)
def test_labels_that_are_no_classes_are_refused(tmp_path: Path, label: str, message: str) -> None:
    write_tar(tmp_path / "train/0.tar", {"a.jpg": picture(0), "a.cls": label.encode()})
    with pytest.raises(DataError, match=message):
        build_index(tmp_path, "train")


def test_long_and_unusual_names_work(tmp_path: Path) -> None:
    name = "ordner/" + "lang-" * 60 + "ü"
    for format in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        write_tar(
            tmp_path / "train/0.tar",
            {
                f"{name}.jpg": picture(0),
                f"{name}.cls": b"0",
                "./x.y/1.jpg": picture(1),
                "./x.y/1.cls": b"0",
            },
            format,
        )
        index = build_index(tmp_path, "train")
        assert (index.name(0), len(index)) == (f"train/0.tar/{name}.jpg", 2)
        assert bytes(index.encoded(np.array([1]))[0]) == picture(1)


def faults(root: Path) -> dict[str, str]:
    """Return the excluded images of train, by name, with their faults; `error` must report the
    same."""
    index = build_index(root, "train", bad_images="skip")
    with pytest.raises(DataError) as caught:
        build_index(root, "train")
    assert all(line in str(caught.value) for line in index.excluded[:10])
    return dict(line.split(": ", 1) for line in index.excluded)


def test_members_that_are_no_samples_are_faults(root: Path) -> None:
    with tarfile.open(root / "train/s-03.tar", "w") as tar:
        for name, data in {
            "../out.jpg": picture(0),
            "/abs.jpg": picture(0),
            "no-label.jpg": picture(0),
            "bad.jpg": b"x",
        }.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for name, kind in (
            ("link.jpg", tarfile.SYMTYPE),
            ("hard.jpg", tarfile.LNKTYPE),
            ("dev.jpg", tarfile.CHRTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        for name, data in {
            "bad.cls": b"0",
            "word.cls": b"a\nb",
            "deep.json": b"[" * 10**5,
            "twice.jpg": picture(1),
            "twice.png": b"",
            "twice.cls": b"1",
        }.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        tar.addfile(tarfile.TarInfo("readme.txt"))
    found = {name.removeprefix("train/s-03.tar/"): fault for name, fault in faults(root).items()}
    for name, words in {
        "../out.jpg": "leads out",
        "/abs.jpg": "leads out",
        "no-label.jpg": "has no label",
        "bad.jpg": "is no JPEG",
        "link.jpg": "is a link",
        "hard.jpg": "is a link",
        "dev.jpg": "a device",
        "word.cls": "is no label",
        "deep.json": "is no label",
        "twice.png": "second image of its sample",
    }.items():
        assert words in found.pop(name)
    assert not found
    assert len(build_index(root, "train", bad_images="skip")) == 13


def test_a_large_label_is_not_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples_module, "MAX_LABEL_BYTES", 10)
    write_tar(
        root / "train/s-03.tar",
        {"a.jpg": picture(0), "a.json": json.dumps({"label": 1, "text": "x" * 20}).encode()},
    )
    assert "more than 10" in faults(root)["train/s-03.tar/a.json"]


def member_start(shard: Path, name: str) -> int:
    with tarfile.open(shard) as tar:
        return tar.getmember(name).offset


@pytest.mark.parametrize("cut", ["in-an-image", "in-a-header", "between-members", "at-once"])
def test_a_truncated_shard_is_a_fault(root: Path, cut: str) -> None:
    shard = root / "train/s-01.tar"
    start = member_start(shard, "0006.jpg")
    os.truncate(
        shard,
        {
            "in-an-image": start + 900,
            "in-a-header": start + 100,
            "between-members": start,
            "at-once": 0,
        }[cut],
    )
    found = faults(root)
    index = build_index(root, "train", bad_images="skip")
    assert len(index) == (8 if cut == "at-once" else 10)
    assert all(name.startswith("train/s-01.tar") for name in found)
    assert ("train/s-01.tar/0006.jpg" in found) == (cut == "in-an-image")
    assert any("is cut" in fault or "not a plain tar" in fault for fault in found.values())


def test_garbage_in_a_shard_is_a_fault(root: Path) -> None:
    shard = root / "train/s-01.tar"
    start = member_start(shard, "0006.jpg")
    with shard.open("r+b") as opened:
        opened.seek(start)
        opened.write(b"\xaa" * 512)
    assert faults(root) == {
        "train/s-01.tar": f"is damaged or cut at byte {start}: what follows is no member"
    }
    assert len(build_index(root, "train", bad_images="skip")) == 10


def test_two_tars_in_one_file_are_a_fault(root: Path) -> None:
    first, second = root / "train/s-00.tar", root / "train/s-01.tar"
    first.write_bytes(first.read_bytes() + second.read_bytes())
    assert "continues after its end" in faults(root)["train/s-00.tar"]


def test_a_negative_size_does_not_loop(root: Path) -> None:
    shard = root / "train/s-01.tar"
    data = bytearray(shard.read_bytes())
    start = member_start(shard, "0006.jpg")
    data[start + 124 : start + 136] = b"\xff" * 10 + b"\xf8\0"  # base 256: -2048
    header = data[start : start + 148] + b" " * 8 + data[start + 156 : start + 512]
    data[start + 148 : start + 156] = f"{sum(header):06o}\0 ".encode()
    shard.write_bytes(data)
    assert "train/s-01.tar" in faults(root)


@pytest.mark.parametrize("name", ["s-09.tar.gz", "s-09.tgz"])
def test_compressed_shards_are_refused(root: Path, name: str) -> None:
    with tarfile.open(root / "train" / name, "w:gz"):
        pass
    with pytest.raises(DataError, match=f"{name}: a compressed shard cannot be read in any order"):
        build_index(root, "train")
    (root / "train" / name).rename(root / "train/s-09.tar")
    assert "not a plain tar file" in faults(root)["train/s-09.tar"]


def test_unchanged_shards_are_not_read_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for shard in (root / "train").iterdir():
        os.utime(shard, (1e9, 1e9))
    before = build_index(root, "train")
    monkeypatch.setattr(scan_module, "scan_shard", lambda shard: pytest.fail("was read"))
    assert build_index(root, "train").fingerprint() == before.fingerprint()
    monkeypatch.undo()
    write_tar(root / "train/s-01.tar", samples(range(4, 7)))
    assert len(build_index(root, "train")) == 11
    (root / "train/s-02.tar").unlink()
    assert len(build_index(root, "train")) == 7


def test_many_shards_are_read_by_processes(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = build_index(root, "train").fingerprint()
    monkeypatch.setattr(scan_module, "_PROCESSES_FROM", 1)
    assert build_index(root, "train", workers=2, again=True).fingerprint() == expected


def test_a_run_keeps_the_members_that_it_began_with(root: Path, tmp_path: Path) -> None:
    whole, file = build_index(root, "train"), tmp_path / "images.parquet"
    keep_images(whole, file)
    (root / "train/s-01.tar").unlink()
    write_tar(root / "train/s-02.tar", samples(range(8, 11)))
    index = build_index(root, "train")
    assert len(index) == 7
    then, gone = reconcile(index, file)
    assert then.fingerprint() == whole.fingerprint() and list(gone) == [4, 5, 6, 7, 11]
    assert bytes(then.encoded(np.array([9]))[0]) == picture(9)
    assert "cannot be read" in str(then.check(5))


def test_images_behind_one_that_was_removed_are_found_at_their_new_places(
    root: Path, tmp_path: Path
) -> None:
    whole, file = build_index(root, "train"), tmp_path / "images.parquet"
    keep_images(whole, file)
    write_tar(root / "train/s-02.tar", samples(range(9, 12)))
    then, gone = reconcile(build_index(root, "train"), file)
    assert list(gone) == [8]
    good = np.setdiff1d(np.arange(len(then)), list(gone))
    assert [bytes(image) for image in then.encoded(good)] == [picture(row) for row in good]


def test_a_shard_truncated_while_it_is_read_gives_short_images(root: Path) -> None:
    index = build_index(root, "train")
    everything = np.arange(len(index))
    whole = index.encoded(everything)
    os.truncate(root / "train/s-00.tar", int(index.offset[1]) + 20)  # type: ignore[index]
    after = index.encoded(everything)
    assert [len(a) for a in after[:4]] == [len(whole[0]), 20, 0, 0]
    assert all(bytes(a) == bytes(b) for a, b in zip(after[4:], whole[4:], strict=True))
    assert index.check(1) and index.check(2) and not index.check(0)
