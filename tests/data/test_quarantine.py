"""Images that break during a run: excluded, recorded, and replaced alike on every world size."""

import dataclasses
import io
import json
import logging
import os
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fastdeit.data import quarantine as quarantine_module
from fastdeit.data.formats.check import in_parallel
from fastdeit.data.graphs.options import PipelineOptions
from fastdeit.data.index import DataError, Index
from fastdeit.data.indexing import build_index
from fastdeit.data.loaders.batch import Batch
from fastdeit.data.loaders.evaluation import PADDING, EvalLoader
from fastdeit.data.loaders.train import TrainLoader
from fastdeit.data.quarantine import Quarantine, read_quarantine
from fastdeit.data.snapshot import keep_images, reconcile
from fastdeit.plan.plan import Plan
from fastdeit.plan.spec import PlanSpec
from tests.data.formats.test_check import JPEG, REFUSED
from tests.data.formats.test_check import bomb as claimed_bomb
from tests.support.images import write_shapes
from tests.support.launching import ROOT

SIDE, BATCH, BAD = 16, 12, 5
OPTIONS = PipelineOptions((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), num_threads=1, backend="exact")


SPOILT = {kind: data for kind, (data, _) in REFUSED.items()} | {"bomb": claimed_bomb()}
# a false height and width
SPOILT["lying"] = JPEG.replace(bytes((0, 37, 0, 53)), bytes((200, 0, 200, 0)), 1)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(quarantine_module, "RETRIES_S", (0.01, 0.02))
    return write_shapes(tmp_path / "data", train=16, val=5)


def test_name_that_is_not_utf8_is_recorded_and_read_again(root: Path, tmp_path: Path) -> None:
    name = root / "train/circle" / os.fsdecode(b"K\xe4se\x1b[31m\n.jpg")
    (root / "train/circle/01.jpg").rename(name)
    index = build_index(root, "train")
    row = [index.name(row) for row in range(16)].index(r"train/circle/K\xe4se\x1b[31m\n.jpg")
    assert index.read(row) == name.read_bytes() and index.check(row) is None
    file = tmp_path / "quarantine.jsonl"
    Quarantine(index, file=file).add({row: "damaged"})
    (image,) = read_quarantine(file, "train")
    assert (image.row, image.name) == (row, index.name(row))
    assert Quarantine(index, file=file).rows.tolist() == [row]


def loader(
    index: Index,
    rank: int = 0,
    world: int = 1,
    options: PipelineOptions = OPTIONS,
    micro_batch: int = 0,
    **others: Any,
) -> TrainLoader:
    plan = Plan(PlanSpec(seed=3, input_size=SIDE, repeats=2, reprob=0.5), index.sizes)
    share = BATCH // world
    return TrainLoader(
        index,
        plan,
        options,
        batch_size=BATCH,
        micro_batch=micro_batch or share,
        rank=rank,
        world_size=world,
        **others,
    )


def epoch_of(index: Index, world: int = 1, **options: Any) -> dict[str, torch.Tensor]:
    """Every field of an epoch's batches over all ranks, by rising ordinal."""
    held: list[Batch] = []
    for rank in range(world):
        one = loader(index, rank, world, **options)
        held += list(one.epoch(0)) + list(one.epoch(1))[:0]
        one.close()
    names = [
        field.name if field.name != "unmixed" else "images"
        for field in dataclasses.fields(Batch)
        if field.name not in ("teacher_record", "digest")
    ]
    whole = {name: torch.cat([getattr(batch, name) for batch in held]) for name in names}
    order = torch.argsort(whole["ordinals"])
    return {name: tensor[order] for name, tensor in whole.items()}


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def to_text(path: Path) -> None:
    path.write_text("no image " * 40)


def shrink(path: Path) -> None:
    Image.new("RGB", (7, 7)).save(path, "PNG")


DAMAGES: list[Callable[[Path], None]] = [truncate, empty, to_text, shrink, Path.unlink]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_bad_image_is_replaced_by_the_next_on_any_world_size(
    root: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    index = build_index(root, "train")
    before = epoch_of(index)
    expected_plan = Plan(PlanSpec(seed=3, input_size=SIDE, repeats=2, reprob=0.5), index.sizes)
    drawn = expected_plan.images(0, before["ordinals"].numpy())
    bad = int(drawn[BATCH + 1])  # not in the first batch
    damage(index.root / os.fsdecode(index.names[bad].as_py()))
    with caplog.at_level(logging.WARNING):
        after = [epoch_of(index, world) for world in (1, 2, 3)]
    expected_plan.exclude(np.array([bad]))
    replaced = expected_plan.images(0, before["ordinals"].numpy())
    for one in after:
        for name, tensor in one.items():
            assert torch.equal(tensor, after[0][name]), name
        assert one["labels"].tolist() == index.labels[replaced].tolist()
        good = torch.from_numpy(drawn != bad)
        assert 0 < int((~good).sum()) < len(drawn)
        assert torch.equal(one["images"][good], before["images"][good])
        assert not torch.equal(one["images"][~good], before["images"][~good])
    assert index.name(bad) in caplog.text


PLACES = (0, 11, 12, 23)  # first and last of the first two batches
KINDS = (
    "text",
    "zeros",
    "gif",
    "jpeg-truncated",
    "jpeg-stray-bytes",
    "png-truncated",
    "png-wrong-checksum",
    "webp-truncated",
)


@pytest.mark.parametrize(
    "kinds", [KINDS[:4], KINDS[4:], ("empty", "lying", "bomb", "bmp-truncated")], ids=",".join
)
def test_every_kind_of_bad_image_is_replaced_anywhere_in_a_batch(
    root: Path, kinds: tuple[str, ...], tmp_path: Path
) -> None:
    index, file = build_index(root, "train"), tmp_path / "quarantine.jsonl"
    plan = Plan(PlanSpec(seed=3, input_size=SIDE, repeats=2), index.sizes)
    rows = dict(
        zip(
            dict.fromkeys(int(plan.images(0, np.array([place]))[0]) for place in PLACES),
            kinds,
            strict=False,
        )
    )
    assert len(rows) == len(PLACES)
    for row, kind in rows.items():
        (index.root / index.name(row)).write_bytes(SPOILT[kind])
    one = epoch_of(index, quarantine=Quarantine(index, file=file))
    plan.exclude(np.array(sorted(rows)))
    assert one["labels"].tolist() == index.labels[plan.images(0, one["ordinals"].numpy())].tolist()
    assert {image.row for image in read_quarantine(file, "train")} == set(rows)
    two = epoch_of(index, world=2)  # that know of nothing yet
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_batch_of_bad_images_only_is_replaced(root: Path) -> None:
    index = build_index(root, "train")
    plan = Plan(PlanSpec(seed=3, input_size=SIDE, repeats=2), index.sizes)
    bad = np.unique(plan.images(0, np.arange(BATCH)))
    assert len(bad) <= 10
    for row in bad:
        (index.root / index.name(row)).write_bytes(SPOILT["text"])
    held = Quarantine(index)
    seen = epoch_of(index, quarantine=held)
    assert held.rows.tolist() == bad.tolist() and not np.isin(seen["image_index"], bad).any()
    plan.exclude(bad)
    assert (
        seen["labels"].tolist() == index.labels[plan.images(0, seen["ordinals"].numpy())].tolist()
    )


def test_bad_replacements_are_replaced_too(root: Path) -> None:
    index = build_index(root, "train")
    plan = Plan(PlanSpec(seed=3, input_size=SIDE, repeats=2), index.sizes)
    # side 0 of six pairs in a row; the first batch has one of them
    bad = np.unique(plan.images(0, 4 * np.arange(2, 8)))
    for row in bad:
        truncate(index.root / index.name(row))
    held = Quarantine(index)
    seen = epoch_of(index, quarantine=held)
    assert held.rows.tolist() == bad.tolist()
    plan.exclude(bad)
    assert (
        seen["labels"].tolist() == index.labels[plan.images(0, seen["ordinals"].numpy())].tolist()
    )


def test_quarantine_file_is_read_by_a_resumed_run(root: Path, tmp_path: Path) -> None:
    index, file = build_index(root, "train"), tmp_path / "run/quarantine.jsonl"
    keep_images(index, tmp_path / "images.parquet")
    (index.root / os.fsdecode(index.names[BAD].as_py())).unlink()
    first = epoch_of(index, quarantine=Quarantine(index, file=file))
    (image,) = read_quarantine(file, "train")
    assert (image.row, image.split) == (BAD, "train") and image.fault
    assert read_quarantine(file, "val") == []
    with file.open("a") as torn:
        torn.write('{"row": 3, "spl')
    # the folder is listed again: one row fewer, but the run keeps to those it began with
    again, gone = reconcile(build_index(root, "train"), tmp_path / "images.parquet")
    assert again.fingerprint() == index.fingerprint() and list(gone) == [BAD]
    taken_up = Quarantine(again, file=file)
    assert taken_up.rows.tolist() == [BAD]
    taken_up.add(gone)
    second = epoch_of(again, quarantine=taken_up)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert len(read_quarantine(file, "train")) == taken_up.count_all() == 1


def test_images_of_other_ranks_are_counted_and_an_unchanged_file_is_read_once(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, file = build_index(root, "train"), tmp_path / "quarantine.jsonl"
    mine, other = Quarantine(index, file=file), Quarantine(index, file=file)
    assert mine.count_all() == 0
    other.add({1: "damaged", 2: "damaged"})
    assert mine.count_all() == 2
    monkeypatch.setattr(quarantine_module, "read_quarantine", None)
    assert mine.count_all() == 2


@pytest.mark.parametrize("read_ahead", [True, False])
def test_image_is_recorded_with_the_step_of_its_batch(
    root: Path, tmp_path: Path, read_ahead: bool
) -> None:
    """A thread finds it while the step before still trains; from its own step on it is replaced."""
    index, file = build_index(root, "train"), tmp_path / "quarantine.jsonl"
    first = loader(index)
    steps = [set(next(first.epoch(epoch)).image_index.tolist()) for epoch in (0, 1)]
    bad = min(steps[1] - steps[0])
    (root / "train" / index.name(bad).removeprefix("train/")).write_bytes(b"")
    found = loader(
        index,
        options=dataclasses.replace(OPTIONS, read_ahead=read_ahead),
        quarantine=Quarantine(index, file=file),
    )
    step = found.steps_per_epoch
    seen = [next(found.epoch(epoch)) for epoch in (0, 1)]
    found.close()
    assert [(image.row, image.step) for image in read_quarantine(file, "train")] == [(bad, step)]
    assert set(seen[0].image_index.tolist()) == steps[0]
    assert bad not in seen[1].image_index.tolist()


def test_images_of_later_micro_batches_are_recorded_with_the_step(
    root: Path, tmp_path: Path
) -> None:
    index, file = build_index(root, "train"), tmp_path / "quarantine.jsonl"
    one = loader(index, micro_batch=BATCH // 3)
    first, second = (set(next(batches).image_index.tolist()) for batches in [one.epoch(0)] * 2)
    one.close()
    bad = min(second - first)
    (root / index.name(bad)).write_bytes(b"")
    quarantine = Quarantine(index, file=file)
    another = loader(index, micro_batch=BATCH // 3, quarantine=quarantine)
    batches = another.epoch(0)
    assert bad not in [row for _ in range(2) for row in next(batches).image_index.tolist()]
    another.close()
    assert [(image.row, image.step) for image in read_quarantine(file, "train")] == [(bad, 0)]


def test_quarantine_file_that_cannot_be_written_ends_no_run(root: Path, tmp_path: Path) -> None:
    index, file = build_index(root, "train"), tmp_path / "quarantine.jsonl"
    file.write_text('{"row": 3, "spl')  # cut off by a crash
    Quarantine(index, file=file).add({BAD: "is bad"})
    assert [image.row for image in read_quarantine(file, "train")] == [BAD]
    held = Quarantine(index, file=file / "no folder")
    held.add({BAD: "is bad"})
    assert held.rows.tolist() == [BAD]


def test_file_that_is_missing_for_a_moment_is_read_again(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quarantine_module, "RETRIES_S", (0.2, 0.5, 1.0))
    index = build_index(root, "train")
    before, path = epoch_of(index), index.root / os.fsdecode(index.names[BAD].as_py())
    hidden = path.with_suffix(".away")
    path.rename(hidden)
    bad = Quarantine(index)
    threading.Timer(0.4, lambda: hidden.rename(path)).start()
    after = epoch_of(index, quarantine=bad)
    assert path.exists() and len(bad) == 0
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_policy_error_stops_and_names_the_file(root: Path) -> None:
    index = build_index(root, "train")
    truncate(index.root / os.fsdecode(index.names[BAD].as_py()))
    with pytest.raises(DataError, match=index.name(BAD).rsplit("/", 1)[1]):
        epoch_of(index, quarantine=Quarantine(index, "error"))


def test_too_many_bad_files_stop_the_run(root: Path) -> None:
    index = build_index(root, "train")
    for row in range(11):
        truncate(index.root / os.fsdecode(index.names[row].as_py()))
    with pytest.raises(DataError, match="11 images could not be read since the run began"):
        epoch_of(index)


class LargeIndex:
    """As much of an index of 200,000 files as a quarantine needs."""

    split = "train"
    root = Path("data")

    def __init__(self, header_only: np.ndarray | None = None) -> None:
        self.header_only = header_only

    def __len__(self) -> int:
        return 200_000

    def name(self, row: int) -> str:
        return f"{row}.jpg"

    def count_files(self, rows: np.ndarray) -> int:
        return len(rows)


def test_one_file_in_ten_thousand_may_be_bad() -> None:
    quarantine = Quarantine(LargeIndex())  # type: ignore[arg-type]
    quarantine.add(dict.fromkeys(range(20), "is bad"))
    assert len(quarantine) == 20
    with pytest.raises(DataError, match="21 images could not be read"):
        quarantine.add({20: "is bad"})


def test_one_image_in_a_hundred_may_be_bad_if_none_was_decoded_before() -> None:
    index = LargeIndex(np.arange(200_000) >= 100)
    quarantine = Quarantine(index)  # type: ignore[arg-type]
    quarantine.add(dict.fromkeys(range(1000, 3000), "is bad"))
    with pytest.raises(DataError, match=r"--check decode` finds all of them"):
        quarantine.add({3000: "is bad"})


@pytest.mark.parametrize(
    ("rows", "fault"), [(range(21), "is bad"), (range(500, 521), "cannot be read: stale handle")]
)
def test_a_storage_that_fails_ends_the_run_whatever_was_decoded(rows: range, fault: str) -> None:
    index = LargeIndex(np.arange(200_000) >= 100)
    quarantine = Quarantine(index)  # type: ignore[arg-type]
    quarantine.add(dict.fromkeys(list(rows)[:20], fault))
    with pytest.raises(DataError, match="21 images could not be read"):
        quarantine.add({rows[-1]: fault})


def test_all_images_beyond_the_end_of_a_shard_are_excluded_at_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_shapes(tmp_path / "folder", train=20, val=1)
    with (
        tarfile.open(tmp_path / "train-0.tar", "w") as first,
        tarfile.open(tmp_path / "train-1.tar", "w") as second,
    ):
        for number, image in enumerate(sorted(folder.glob("train/*/*.jpg"))):
            for suffix, data in (("jpg", image.read_bytes()), ("cls", str(number % 3).encode())):
                member = tarfile.TarInfo(f"{number:03}.{suffix}")
                member.size = len(data)
                (first, second)[number % 2].addfile(member, io.BytesIO(data))
    index = build_index(tmp_path, "train")
    assert index.shard is not None and index.offset is not None and len(index) > 38
    os.truncate(tmp_path / "train-0.tar", int(index.offset[2]) + 9)
    lost = [row for row in range(len(index)) if index.shard[row] == 0 and row >= 2]
    bad = Quarantine(index)
    seen = epoch_of(index, quarantine=bad)
    assert bad.rows.tolist() == lost and len(lost) > 11  # more than so many files might be
    assert len(seen["labels"]) == len(index) // BATCH * BATCH
    assert caplog.text.count("excluded from now on") == 1 and "train-0.tar" in caplog.text


def test_evaluation_excludes_a_bad_image(root: Path) -> None:
    index = build_index(root, "val")
    truncate(index.root / os.fsdecode(index.names[0].as_py()))
    for world in (1, 2):
        seen: list[int] = []
        for rank in range(world):
            one = EvalLoader(
                index,
                OPTIONS,
                batch_size=4,
                input_size=SIDE,
                crop_pct=1.0,
                rank=rank,
                world_size=world,
            )
            batches = [*one, *one]  # the second pass knows
            assert len(batches) == 2 * len(one)
            seen += [
                row
                for b in batches
                for row, label in zip(b.image_index.tolist(), b.labels.tolist(), strict=True)
                if label != PADDING
            ]
            one.close()
        assert sorted(seen) == sorted([*range(1, len(index))] * 2)


def test_killed_worker_process_is_reported() -> None:
    with pytest.raises(ValueError, match="one of 2 processes that read the data set has ended"):
        list(in_parallel(os._exit, [9, 9], 2, processes=True))


def test_script_without_a_guard_is_named(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from fastdeit.data.formats.check import in_parallel\n"
        "list(in_parallel(abs, [1, 2], 2, processes=True))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(script)]
    end = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert end.returncode == 1
    assert 'does a script call this outside of if __name__ == "__main__":?' in end.stderr


def test_images_excluded_at_different_times_are_written_together(tmp_path: Path) -> None:
    index: Any = LargeIndex()
    held = Quarantine(index, file=tmp_path / "quarantine.jsonl")
    held.exclude({1: "gone"})
    held.exclude({2: "damaged"})
    held.write()
    held.write()
    lines = (tmp_path / "quarantine.jsonl").read_text().splitlines()
    assert [json.loads(line)["row"] for line in lines] == [1, 2]
