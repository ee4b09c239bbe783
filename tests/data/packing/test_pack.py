"""A packed data set: the source's order and labels, the same bytes however it was written, damage
and interruptions."""

import dataclasses
import io
import json
import os
import shutil
import tarfile
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastdeit.data.formats.listing import DataError
from fastdeit.data.indexing import build_index
from fastdeit.data.packing import pack as pack_module
from fastdeit.data.packing import parts as parts_module
from fastdeit.data.packing import trial
from fastdeit.data.packing.encode import Encoding, pack_image
from fastdeit.data.packing.job import ShardSize
from fastdeit.data.packing.manifest import UNFINISHED, find_written, lock_folder, read_manifest
from fastdeit.data.packing.pack import Summary, pack
from fastdeit.data.packing.parts import PartRecord
from fastdeit.data.packing.verify import find_damage, find_strangers
from fastdeit.library.train_loader import create_loader
from fastdeit.plan.plan import Plan
from fastdeit.plan.spec import PlanSpec
from tests.support.cifar import files100, write_files
from tests.support.images import write_shapes
from tests.support.packing import COPY, contents, make_job, pixels


@pytest.fixture(autouse=True)
def few_on_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "IMAGES", 4)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_shapes(tmp_path / "set")


def as_folder(root: Path) -> None:
    pass


def as_list(root: Path) -> None:
    """Turn the folder into a list in an order that is not that of the classes."""
    for split in ("train", "val"):
        files = sorted((root / split).rglob("*.*"), key=lambda file: (file.name, file.parent.name))
        lines = [
            f"{split}-images/{file.relative_to(root / split)},{file.parent.name}\n"
            for file in files
        ]
        (root / split).rename(root / f"{split}-images")
        (root / f"{split}.csv").write_text("".join(lines))


def as_shards(root: Path) -> None:
    """Turn the folder into shards without a classes.txt, labelled by name."""
    for split in ("train", "val"):
        files = sorted((root / split).rglob("*.*"), key=lambda file: (file.name, file.parent.name))
        for number in range(2):
            with tarfile.open(root / f"{split}-{number}.tar", "w") as tar:
                for file in files[number::2]:
                    name = f"{file.parent.name}.{file.stem}"
                    tar.add(file, f"{name}{file.suffix}")
                    label = tarfile.TarInfo(f"{name}.cls")
                    label.size = len(file.parent.name)
                    tar.addfile(label, io.BytesIO(file.parent.name.encode()))
        shutil.rmtree(root / split)


def as_numbered_classes(root: Path) -> None:
    """Call the classes by numbers that are not their positions."""
    for split in ("train", "val"):
        for number, folder in enumerate(sorted((root / split).iterdir()), 9):
            folder.rename(folder.with_name(str(number)))


FORMS = (as_folder, as_list, as_shards, as_numbered_classes)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
@pytest.mark.parametrize("encoding", [Encoding(resize=32), COPY], ids=["resized", "copied"])
def test_shards_have_the_order_and_the_labels_of_the_source(
    root: Path, tmp_path: Path, form: Any, encoding: Encoding
) -> None:
    form(root)
    job = make_job(root, tmp_path / "packed", encoding=encoding)
    pack(job)
    for split, source in job.source.items():
        classes = job.source["train"].classes
        packed = build_index(tmp_path / "packed", split)
        assert packed.classes == classes
        np.testing.assert_array_equal(packed.labels, source.labels)
        for row in range(len(source)):
            expected = pack_image(source.read(row), tuple(source.sizes[row].tolist()), encoding)
            assert packed.read(row) == expected[0]
            stem = Path(source.name(row)).stem.replace(".", "-")
            assert packed.name(row).split("/")[-1].startswith(f"{row:08d}_{stem}.")


def test_the_plan_draws_the_same_images_as_of_the_source(root: Path, tmp_path: Path) -> None:
    as_list(root)
    job = make_job(root, tmp_path / "packed")
    pack(job)
    packed = build_index(tmp_path / "packed", "train")
    assert (packed.sizes < job.source["train"].sizes).all()
    spec = PlanSpec(seed=3, input_size=16, repeats=2)
    drawn = []
    for index in (job.source["train"], packed):
        rows = Plan(spec, index.sizes).images(1, np.arange(24))
        drawn.append([Path(index.name(row)).stem.split("_")[-1] for row in rows])
    assert drawn[0] == drawn[1]


def test_a_copy_gives_the_batches_of_the_source(root: Path, tmp_path: Path) -> None:
    job = make_job(root, tmp_path / "packed", encoding=COPY)
    pack(job)
    indexes = (job.source["train"], build_index(tmp_path / "packed", "train"))
    assert len({Plan(PlanSpec(), index.sizes).fingerprint() for index in indexes}) == 1
    settings: dict[str, Any] = {"batch_size": 8, "input_size": 16, "seed": 5}
    loaders = [create_loader(folder, **settings) for folder in (root, tmp_path / "packed")]
    batches = list(zip(*loaders, strict=True))
    assert len(batches) == 3
    for (images, targets), (other_images, other_targets) in batches:
        assert images.equal(other_images) and targets.equal(other_targets)


def test_cifar_is_copied_with_its_pixels_and_class_names(tmp_path: Path) -> None:
    root = write_files(tmp_path / "cifar", files100(binary=True))
    job = make_job(root, tmp_path / "packed", encoding=COPY)
    summary = pack(job)
    packed = build_index(tmp_path / "packed", "train")
    assert packed.classes == job.source["train"].classes and not summary.trial.psnr_db
    for row in range(len(packed)):
        np.testing.assert_array_equal(pixels(packed, row), pixels(job.source["train"], row))


def test_a_folder_is_read_by_our_reader_and_has_the_same_order(root: Path, tmp_path: Path) -> None:
    job = make_job(root, tmp_path / "packed", layout="folder")
    pack(job)
    shards = make_job(root, tmp_path / "shards")
    pack(shards)
    packed, other = (build_index(tmp_path / name, "train") for name in ("packed", "shards"))
    assert packed.kind == "files" and packed.classes == other.classes
    np.testing.assert_array_equal(packed.labels, job.source["train"].labels)
    assert [packed.read(row) for row in range(24)] == [other.read(row) for row in range(24)]
    assert packed.name(9) == "train/square/00000009_01.jpg"


def test_bytes_depend_on_nothing_but_the_source_and_the_settings(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack(make_job(root, tmp_path / "a", workers=1))
    monkeypatch.setattr(pack_module, "_PROCESSES_FROM", 1)
    pack(make_job(root, tmp_path / "b", workers=3))
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    with tarfile.open(tmp_path / "a/train-000000.tar") as tar:
        members = tar.getmembers()
    assert {(member.mtime, member.uid, member.uname, member.mode) for member in members} == {
        (0, 0, "", 0o644)
    }


class Stop(BaseException):
    """An interrupt."""


@pytest.mark.parametrize("layout", ["shards", "folder"])
@pytest.mark.parametrize("after", [0, 10, 30])
def test_an_interrupted_packing_continues_to_the_same_bytes(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: Any, after: int
) -> None:
    pack(make_job(root, tmp_path / "whole", layout=layout))
    job = make_job(root, tmp_path / "part", layout=layout, workers=1)
    count = 0

    def stop(*arguments: Any) -> Any:
        nonlocal count
        count += 1
        if count > after:
            raise Stop
        return pack_image(*arguments)

    with monkeypatch.context() as patched, pytest.raises(Stop):
        patched.setattr(parts_module, "pack_image", stop)
        pack(job)
    assert (job.output / UNFINISHED).is_file() and not (job.output / "pack.json").exists()
    # what a killed process leaves
    (job.output / ".train-000002.tar.0123abcd.tmp").write_bytes(b"half")
    with pytest.raises(DataError, match="is not packed completely"):
        read_manifest(job.output)
    summary = pack(job)
    assert summary.written_before == after // 7
    assert contents(job.output) == contents(tmp_path / "whole")


@pytest.mark.parametrize("layout", ["shards", "folder"])
def test_a_recorded_part_counts_only_if_its_checksum_holds(
    root: Path, tmp_path: Path, layout: Any
) -> None:
    job = make_job(root, tmp_path / "packed", layout=layout)
    pack(job)
    whole = contents(job.output)
    victim = sorted(path for path in job.output.rglob("*00000*") if path.is_file())[-1]
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    parts = len(read_manifest(job.output).files) - (4 if layout == "shards" else 2)
    assert pack(job).written_before == parts - 1
    assert contents(job.output) == whole
    assert pack(job).written_before == parts


def test_damage_is_found(root: Path, tmp_path: Path) -> None:
    for layout in ("shards", "folder"):
        job = make_job(root, tmp_path / layout, layout=layout)
        files = pack(job).manifest.files
        assert find_damage(job.output, files, 2) == {} and not find_strangers(job.output, files)
    shards = tmp_path / "shards"
    (shards / "train-000000.tar").unlink()
    (shards / "classes.txt").write_text("other\n")
    (shards / "train-000009.tar").write_bytes(b"")
    files = read_manifest(shards).files
    assert find_damage(shards, files, 2) == {
        "train-000000.tar": "cannot be read: No such file or directory",
        "classes.txt": "has 6 bytes, not 21",
    }
    assert find_strangers(shards, files) == ["train-000009.tar"]
    folder = tmp_path / "folder"
    (folder / "train/circle/00000003_03.jpg").unlink()
    for name in ("extra.jpg", "00000001_again.jpg", "00000099_more.jpg"):
        (folder / "val/square" / name).write_bytes(b"")
    files = read_manifest(folder).files
    assert find_damage(folder, files, 2) == {
        "train/00000000": "has 6 of 7 images",
        "val/00000000": "has 8 of 7 images",
    }
    assert find_strangers(folder, files) == [
        "val/square/00000099_more.jpg",
        "val/square/extra.jpg",
    ]


def test_a_manifest_from_elsewhere_is_read_within_bounds(tmp_path: Path) -> None:
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "train/a").mkdir(parents=True)
    os.mkfifo(tmp_path / "train/a/00000001_x.jpg")
    names = ("/dev/zero", "../secret", "zero")
    files = [PartRecord(name, 0, "") for name in names]
    files += [PartRecord("train/0", 0, "", "train", 0, 10**30, 1)]
    assert find_damage(tmp_path, files, 1) == {
        "/dev/zero": "cannot be read: its name leads out of the folder",
        "../secret": "cannot be read: its name leads out of the folder",
        "zero": "cannot be read: it is no regular file",
        "train/0": "has 0 of 1 images",
    }
    assert find_strangers(tmp_path, files) == []


def test_other_settings_and_other_content_are_refused(root: Path, tmp_path: Path) -> None:
    job = make_job(root, tmp_path / "packed")
    pack(job)
    with pytest.raises(DataError, match="with other settings: resize 32, now 24; name another"):
        pack(dataclasses.replace(job, encoding=Encoding(24)))
    with pytest.raises(DataError, match="with other settings: images of a shard 7, now 8"):
        pack(dataclasses.replace(job, shard_size=ShardSize(images=8)))
    (root / "train/circle/09.jpg").write_bytes((root / "train/circle/01.jpg").read_bytes())
    with pytest.raises(DataError, match="with other settings: images"):
        pack(make_job(root, tmp_path / "packed"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("mine")
    with pytest.raises(DataError, match=r"must be a new or an empty folder \(it holds notes.txt\)"):
        pack(dataclasses.replace(job, output=tmp_path / "full"))
    assert contents(tmp_path / "full") == {"notes.txt": b"mine"}


def test_damaged_manifests_are_one_error(root: Path, tmp_path: Path) -> None:
    for text in ("", "{", "[]", '{"settings": 1}', "[" * 100_000):
        (tmp_path / "pack.json").write_text(text)
        with pytest.raises(DataError, match=r"pack\.json: is damaged"):
            read_manifest(tmp_path)
    (tmp_path / "pack.json").unlink()
    (tmp_path / UNFINISHED).write_text('{"other": 1}\n')
    with pytest.raises(DataError, match="its first line has no settings"):
        find_written(tmp_path, {}, 1)


def test_one_process_writes_to_a_folder(root: Path, tmp_path: Path) -> None:
    job = make_job(root, tmp_path / "packed")
    with lock_folder(job.output), pytest.raises(DataError, match="another process writes to it"):
        pack(job)
    assert not job.output.exists()


def test_a_small_disk_is_refused_before_anything_is_written(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 50_000))
    job = make_job(root, tmp_path / "packed")
    with pytest.raises(DataError, match=r"disk is too small: about \d+.\d kB are needed, 50.0 kB"):
        pack(job)
    assert not job.output.exists()


def test_a_disk_that_fails_is_one_error(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    job = make_job(root, tmp_path / "packed")
    with monkeypatch.context() as patched:
        patched.setattr(parts_module, "_add_member", fail)
        with pytest.raises(DataError, match="cannot be written: No space left on device; the same"):
            pack(job)
    pack(job)


@pytest.mark.parametrize("layout", ["shards", "folder"])
def test_images_damaged_since_they_were_indexed_are_excluded_and_named(
    root: Path, tmp_path: Path, layout: Any
) -> None:
    job = make_job(root, tmp_path / "packed", layout=layout)
    data = (root / "train/square/01.jpg").read_bytes()
    (root / "train/square/01.jpg").write_bytes(data[:300])
    with pytest.raises(DataError, match=r"square/01\.jpg: .*Truncated.*--bad-images skip"):
        pack(dataclasses.replace(job, output=tmp_path / "strict", bad_images="error"))
    faults = [fault for record in pack(job).manifest.files for _, fault in record.faults]
    assert len(faults) == 1 and "train/square/01.jpg: OSError" in faults[0]
    packed = build_index(job.output, "train")
    assert len(packed) == 23
    names = [packed.name(row).split("/")[-1][:8] for row in range(23)]
    assert names == [f"{row:08d}" for row in range(24) if row != 9]
    assert not find_damage(job.output, read_manifest(job.output).files, 1)


def test_the_policy_on_bad_images_may_change_while_packing(root: Path, tmp_path: Path) -> None:
    job = make_job(root, tmp_path / "packed", bad_images="error", workers=1)
    (root / "train/square/01.jpg").write_bytes((root / "train/square/01.jpg").read_bytes()[:300])
    with pytest.raises(DataError, match="--bad-images skip"):
        pack(job)
    assert pack(dataclasses.replace(job, bad_images="skip")).written_before >= 1
    with pytest.raises(DataError, match=r"train-000001\.tar is without a damaged image: train/sq"):
        pack(job)


def test_an_image_that_cannot_be_read_is_an_error(root: Path, tmp_path: Path) -> None:
    job = make_job(root, tmp_path / "packed")
    (root / "val/circle/00.png").rename(root / "val/circle/gone.png")
    with pytest.raises(DataError, match=r"val/circle/00\.png: cannot be read: No such file"):
        pack(job)
    (root / "val/circle/gone.png").rename(root / "val/circle/00.png")
    assert pack(job).written_before >= 3


def test_the_manifest_says_what_was_done(root: Path, tmp_path: Path) -> None:
    (root / "train/stripe/02.jpg").write_bytes(b"damaged")
    job = make_job(root, tmp_path / "packed")
    pack(job)
    manifest = json.loads((tmp_path / "packed/pack.json").read_text())
    settings = {"format": "shards", "resize": 32, "quality": 90, "filter": "bicubic"}
    assert settings.items() <= manifest["settings"].items()
    train = manifest["source"]["train"]
    assert (train["images"], train["path"]) == (23, str(root))
    assert train["excluded"] == list(job.source["train"].excluded) != []
    psnr = manifest["difference"]["PSNR in dB by share of the area"]
    assert list(psnr) == ["1.0", "0.54", "0.08"] and 20 < psnr["1.0"] < 60
    names = {file["name"] for file in manifest["files"]} | {"pack.json"}
    assert names == set(contents(tmp_path / "packed"))


def test_shards_hold_about_as_many_bytes_as_asked(root: Path, tmp_path: Path) -> None:
    job = make_job(root, tmp_path / "packed", shard_size=ShardSize(bytes=30_000))
    files = pack(job).manifest.files
    sizes = [file.bytes for file in files if file.split == "train"][:-1]
    assert len(sizes) > 1 and all(20_000 < size < 45_000 for size in sizes)


def summary_of(root: Path, output: Path, encoding: Encoding) -> Summary:
    return pack(make_job(root, output, encoding=encoding))


def test_the_difference_is_measured(root: Path, tmp_path: Path) -> None:
    fine = summary_of(root, tmp_path / "fine", Encoding(38, 95, "4:4:4")).trial.psnr_db
    coarse = summary_of(root, tmp_path / "coarse", Encoding(20, 40)).trial.psnr_db
    assert all(one > other + 3 for one, other in zip(fine, coarse, strict=True))
    assert summary_of(root, tmp_path / "copy", COPY).trial.psnr_db == ()
