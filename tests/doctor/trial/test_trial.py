"""The ten seconds of training, with a small student and less time; and what is made of them."""

import math
import os
from pathlib import Path

import pytest

from fastdeit.config.schema import Config
from fastdeit.distributed.world import World, init_distributed
from fastdeit.doctor.findings import Target
from fastdeit.doctor.trial import build, trial
from fastdeit.doctor.trial.trial import Speed, Steps, judge, measure, write_images
from tests.support.images import write_shapes

LOADER = Speed(900.0, "exact backend, 2 cores")
STEPS = Steps([2.8, 2.5, 2.1], 100.0)


@pytest.fixture(scope="module")
def world() -> World:
    return init_distributed()


def test_the_real_loader_and_step_are_measured_and_repeat(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make_small(folder: Path, world: World) -> Config:
        sizes = {"patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 2}
        return original(folder, world).replace(data={"input_size": 32}, model=sizes)

    original = build.make_config
    assert original(tmp_path, world).data.input_size == 224
    monkeypatch.setattr(build, "make_config", make_small)
    monkeypatch.setattr(trial, "_LOADER_S", 0.05)
    monkeypatch.setattr(trial, "_STEPS_S", 0.05)
    monkeypatch.setattr(trial, "COUNT", 32)
    what = write_images(Target(data_path=str(write_shapes(tmp_path / "data"))), tmp_path / "trial")
    loader, steps, again = measure(tmp_path / "trial", world)
    assert what == "images of the data set"
    assert loader.images_per_s > 0 and "exact backend, cpu decoder" in loader.where
    assert steps.images_per_s > 0 and len(steps.losses) >= 3
    assert again.losses == steps.losses
    finding = judge(loader, steps, again, what, "cpu")
    assert finding.status == "ok", finding


def test_a_rank_of_a_launch_trains_alone_with_its_share_of_the_cores(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("torch.set_num_threads", lambda count: None)
    alone = trial.join_alone()
    assert (alone.rank, alone.size, alone.local_size) == (0, 1, 2)
    assert alone.threads == max(1, len(os.sched_getaffinity(0)) // 2)
    assert "RANK" not in os.environ


def test_an_index_is_written_beside_the_copies_alone(tmp_path: Path) -> None:
    data = write_shapes(tmp_path / "data")
    write_images(Target(data_path=str(data)), tmp_path / "trial")
    build.index_images(Config().replace(data={"data_path": str(tmp_path / "trial")}))
    assert not (data / ".fastdeit").exists() and (tmp_path / "trial" / ".fastdeit").exists()


def test_without_a_data_set_images_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "COUNT", 20)
    monkeypatch.setattr(trial, "_MADE", 2)
    assert write_images(Target(), tmp_path).startswith("generated JPEG files")
    files = sorted((tmp_path / "train").glob("*/*.jpg"))
    assert len(files) == 20 and len({file.parent for file in files}) == 16
    assert 30_000 < files[0].stat().st_size < 150_000


@pytest.mark.parametrize(
    ("losses", "text"),
    [
        ([2.8, math.nan, 2.1], "not finite"),
        ([2.8, math.inf], "not finite"),
        ([2.0, 2.0], "not fall"),
    ],
    ids=["nan", "inf", "flat"],
)
def test_a_wrong_loss_is_broken(losses: list[float], text: str) -> None:
    bad = Steps(losses, 100.0)
    finding = judge(LOADER, bad, bad, "images", "cpu")
    assert finding.status == "broken" and text in finding.found


def test_steps_that_do_not_repeat_are_a_warning() -> None:
    again = STEPS._replace(losses=[2.8, 2.5, 2.1000001])
    finding = judge(LOADER, STEPS, again, "images", "cpu")
    assert finding.status == "warning" and "gave other losses" in finding.found


@pytest.mark.parametrize(("device", "status"), [("cuda", "warning"), ("cpu", "ok")])
def test_a_loader_slower_than_a_gpu_is_a_warning(device: str, status: str) -> None:
    fast = STEPS._replace(images_per_s=9000.0)
    finding = judge(LOADER, fast, fast, "images", device)
    assert finding.status == status and "the loader limits" in finding.found
    assert "the step limits" in judge(LOADER, STEPS, STEPS, "images", device).found
