"""Reading from more shards than may be open at once."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fastdeit.data.formats.shards import reader
from fastdeit.data.formats.shards.reader import ShardReader
from tests.data.formats.test_shards import picture, write_tar

LENGTH = 10


@pytest.fixture
def shards(tmp_path: Path) -> list[str]:
    """Paths of 50 files; each byte of file i is i."""
    paths = [tmp_path / f"{number}.tar" for number in range(50)]
    for number, path in enumerate(paths):
        path.write_bytes(bytes([number]) * LENGTH)
    return [str(path) for path in paths]


def read_numbers(opened: ShardReader, numbers: np.ndarray) -> list[list[int]]:
    lengths = np.full(len(numbers), 2)
    return [array.tolist() for array in opened.read(numbers, lengths, numbers % LENGTH)]


def count_open(paths: list[str]) -> int:
    links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
    return len({os.readlink(link) for link in links if os.path.exists(link)} & set(paths))


@pytest.mark.parametrize("limit", [64, 512 + 4 * 20, 10**6], ids=["low", "20", "high"])
def test_any_shard_is_read_whatever_the_limit_of_open_files(
    shards: list[str], limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (limit, limit))
    monkeypatch.setattr(resource, "setrlimit", lambda kind, limits: None)
    opened = ShardReader(shards)
    numbers = np.random.default_rng(0).integers(0, 50, 300)
    for part in (numbers, numbers[:3], np.array([], np.int64), np.arange(50)):
        assert read_numbers(opened, part) == [[n] * min(2, LENGTH - n % LENGTH) for n in part]
        assert count_open(shards) <= {64: reader._FEWEST_OPEN, 592: 20}.get(limit, 50)
    assert count_open(shards) == {64: reader._FEWEST_OPEN, 592: 20}.get(limit, 50)


def test_shards_used_last_stay_open(shards: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "_share_of_files", lambda count: 3)
    opened = ShardReader(shards)
    for number in (0, 1, 2, 0, 7):
        read_numbers(opened, np.array([number]))
    assert sorted(opened._files) == [0, 2, 7]


_TRAIN = """
import resource, sys
from fastdeit.data.graphs.options import PipelineOptions
from fastdeit.data.indexing import build_index
from fastdeit.data.loaders.train import TrainLoader
from fastdeit.plan.plan import Plan
from fastdeit.plan.spec import PlanSpec

resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
index = build_index(sys.argv[1], "train", workers=2)
options = PipelineOptions((0.5,) * 3, (0.5,) * 3, num_threads=2, backend="exact")
plan = Plan(PlanSpec(input_size=16, repeats=1), index.sizes)
loader = TrainLoader(index, plan, options, batch_size=100, micro_batch=100)
print(sum(len(batch.images) for batch in loader.epoch(0)), len(plan.excluded))
"""


@pytest.mark.slow
def test_more_shards_than_may_be_open_train(tmp_path: Path) -> None:
    for number in range(300):
        write_tar(
            tmp_path / f"train/{number:03}.tar", {"a.jpg": picture(number % 3), "a.cls": b"1"}
        )
    command = [sys.executable, "-c", _TRAIN, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["300", "0"], done.stderr[-2000:]
