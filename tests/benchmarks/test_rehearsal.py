"""Tests of the rehearsal: its stand-in, its arithmetic and, in whole, its stages at a tiny size."""

import csv
import io
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import rehearsal
from benchmarks.imagenet.checks import IMAGENET, swing_of_training
from benchmarks.imagenet.job import Job
from benchmarks.imagenet.planning import check_plan, count_images
from benchmarks.imagenet.sizes import list_sizes
from benchmarks.imagenet.stages import STAGES
from benchmarks.imagenet.stand_in import link_shards, make_stand_in, write_folder, write_shards
from benchmarks.imagenet.watch import Cost, watch
from fastdeit.data.indexing import build_index
from fastdeit.storage.jsonl import append_lines
from fastdeit.storage.run_folder import RunFolder

IMAGES, CLASSES = 40, 4


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("stand-in")
    for split in ("train", "val"):
        list(write_shards(root / "shards" / split, IMAGES, CLASSES, seed=1))
        list(write_folder(root / "folder" / split, IMAGES, CLASSES, seed=1))
    return root


def test_both_forms_hold_the_same_images(data: Path) -> None:
    shards = build_index(data / "shards", "train")
    folder = build_index(data / "folder", "train")
    assert len(shards) == len(folder) == IMAGES
    assert shards.excluded == folder.excluded == ()
    assert {shards.read(row) for row in range(IMAGES)} == {
        folder.read(row) for row in range(IMAGES)
    }
    assert np.bincount(folder.labels).tolist() == [IMAGES // CLASSES] * CLASSES


def test_no_two_images_are_equal_and_each_is_small() -> None:
    stand_in = make_stand_in(3000, CLASSES, seed=1)
    files = [stand_in.encode(row) for row in range(3000)]
    assert len(set(files)) == 3000
    assert np.mean([len(file) for file in files]) < 2500
    image = Image.open(io.BytesIO(files[7]))
    assert image.info["comment"] == b"image 00000007"


def test_stand_in_follows_from_the_seed(data: Path, tmp_path: Path) -> None:
    list(write_shards(tmp_path / "again", IMAGES, CLASSES, seed=1))
    list(write_shards(tmp_path / "other", IMAGES, CLASSES, seed=2))
    written = (data / "shards/train/000000.tar").read_bytes()
    assert (tmp_path / "again/000000.tar").read_bytes() == written
    assert (tmp_path / "other/000000.tar").read_bytes() != written


def test_linked_shards_hold_more_images(data: Path, tmp_path: Path) -> None:
    assert link_shards(data / "shards/train", tmp_path / "train", IMAGES, 3 * IMAGES - 1) == 120
    assert link_shards(data / "shards/train", tmp_path / "train", IMAGES, 3 * IMAGES - 1) == 120
    link_shards(data / "shards/val", tmp_path / "val", IMAGES, 1)
    large = build_index(tmp_path, "train")
    assert len(large) == len(set(large.names.to_pylist())) == 3 * IMAGES
    with pytest.raises(FileNotFoundError):
        link_shards(tmp_path, tmp_path / "other", IMAGES, 1)


def test_writing_resumes(data: Path, tmp_path: Path) -> None:
    list(write_folder(tmp_path / "train", IMAGES, CLASSES, seed=1))
    there = tmp_path / "train/n00000000"
    stamp = there.stat().st_mtime_ns
    removed = tmp_path / "train/n00000002"
    for file in removed.iterdir():
        file.unlink()
    removed.rmdir()
    list(write_folder(tmp_path / "train", IMAGES, CLASSES, seed=1))
    assert there.stat().st_mtime_ns == stamp
    assert len(list(removed.iterdir())) == IMAGES // CLASSES


def test_mean_size_is_near_the_published_one() -> None:
    sizes, shares = list_sizes(0)
    assert shares.sum() == pytest.approx(1)
    assert sizes.T @ shares == pytest.approx([469, 387], rel=0.03)
    assert sizes.max() > 4000 and sizes.min() < 40


def test_imagenet_has_two_images_more_than_deit() -> None:
    job = Job(Path("unused"), 1.0)
    sizes = np.full((job.images, 2), 400, np.int32)
    found = {copies: count_images(job, sizes, copies) for copies in (3, 2)}
    assert job.steps == IMAGENET["steps"] == 1251
    assert found == {3: 427_010, 2: 640_513}
    # deit: 1,251 steps of 1,024 are three copies of each of 427,008 images. Here the second and
    # third copy of side 1 have the partners of the next two pairs, of which two are beyond the end
    assert found[3] == job.steps * job.batch // 3 + 2


def test_checks_of_the_plan_can_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job(tmp_path, 0.0002)
    sizes = np.full((job.images, 2), 60, np.int32)
    facts = check_plan(job, sizes)
    assert facts["steps"] == job.steps
    monkeypatch.setattr(
        "fastdeit.plan.order.permute_rows", lambda *_: np.zeros(job.images, np.uint32)
    )
    with pytest.raises(AssertionError):
        check_plan(job, sizes)


def test_cost_has_the_memory_and_time_of_children(tmp_path: Path) -> None:
    code = "import time; held = b'x' * 2**26\nwhile time.process_time() < 0.7: pass"
    cost = watch([[sys.executable, "-c", code]] * 2, tmp_path / "log")
    assert 1.4 < cost.cpu_s < 2.5
    assert 128 < cost.peak_mib < 256
    assert cost.files >= 3 and cost.threads >= 1


def test_failed_command_shows_the_end_of_its_log(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no such thing"):
        watch([[sys.executable, "-c", "raise SystemExit('no such thing')"]], tmp_path / "log")


def test_swing_sees_growth_after_the_warm_up() -> None:
    times = np.linspace(0, 100, 401)

    def swing(memory: np.ndarray) -> float:
        moments = np.stack((times, times, memory), 1)
        cost = Cost(100, 100, 0, 0, 0, 0, 0, moments)
        return cost.swing_pct(cost.time_at(0.2), cost.time_at(0.9))

    assert swing(np.minimum(times, 15) + 500) < 0.1
    assert swing(500 + times) > 5
    assert swing(500 + 500 * (times > 90)) == 0


def test_evaluation_at_the_end_is_no_growth_of_training(tmp_path: Path) -> None:
    times = np.linspace(1000, 1100, 401)
    job = Job(tmp_path, 1)
    lines = [{"time": time, "step": time, "digest": ""} for time in np.linspace(990, 1080, 31)]
    job.run.mkdir()
    append_lines(RunFolder(job.run).metrics, lines)

    def swing(memory: np.ndarray) -> float:
        return swing_of_training(
            job, Cost(0, 0, 0, 0, 0, 0, 0, np.stack((times, times, memory), 1))
        )

    assert swing(500 + 500 * (times > 1081)) == 0
    assert swing(500 + 500 * (times < 1030)) == 0
    assert swing(times - 500) > 2


def test_stage_that_was_done_is_skipped(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shards").symlink_to(data / "shards")
    output = tmp_path / "rows.csv"
    command = ["rehearsal", "--folder", str(tmp_path), "--scale", "0.0001", "-o", str(output)]
    monkeypatch.setattr("sys.argv", [*command, "--stages", "index"])
    assert rehearsal.main() == 0
    assert rehearsal.main() == 0
    with output.open(newline="") as file:
        [row] = csv.DictReader(file)
    assert row["stage"] == "index"
    assert float(row["cpu_s"]) > 0 and float(row["peak_mib"]) > 50


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, 1e9, 0.5])
def test_a_folder_has_one_possible_scale(tmp_path: Path, scale: float) -> None:
    rehearsal.fix_scale(tmp_path, 0.25)
    rehearsal.fix_scale(tmp_path, 0.25)
    with pytest.raises(ValueError, match=r"--scale must be (above 0, at most 1|0.25, that of)"):
        rehearsal.fix_scale(tmp_path, scale)


@pytest.mark.slow
def test_all_stages_pass_at_a_tiny_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "rows.csv"
    command = ["rehearsal", "--folder", str(tmp_path), "--scale", "0.001", "-o", str(output)]
    monkeypatch.setattr("sys.argv", command)
    assert rehearsal.main() == 0
    with output.open(newline="") as file:
        assert [row["stage"] for row in csv.DictReader(file)] == [stage.name for stage in STAGES]
