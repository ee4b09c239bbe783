"""Other programs read packed shards: webdataset, and timm's reader `wds`."""

from pathlib import Path

import numpy as np
import pytest
import webdataset
from timm.data import create_dataset

from fastdeit.data.indexing import build_index
from fastdeit.data.packing.pack import pack
from tests.support.images import write_shapes
from tests.support.packing import make_job, pixels


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    pack(make_job(write_shapes(folder / "set"), folder / "out"))
    return folder / "out"


@pytest.mark.parametrize("split", ["train", "val"])
def test_webdataset_reads_the_samples_that_we_read(packed: Path, split: str) -> None:
    index = build_index(packed, split)
    shards = [str(packed / shard) for shard in index.shards]
    samples = webdataset.WebDataset(shards, shardshuffle=False).decode("pilrgb")
    found = list(samples.to_tuple("jpg", "cls"))
    assert [label for _, label in found] == index.labels.tolist()
    for row, (image, _) in enumerate(found):
        np.testing.assert_array_equal(np.asarray(image), pixels(index, row))


@pytest.mark.parametrize(("name", "split"), [("validation", "val"), ("train", "train")])
def test_timm_reads_the_samples_that_we_read(packed: Path, name: str, split: str) -> None:
    index = build_index(packed, split)
    found = list(create_dataset("wds/", root=str(packed), split=name))
    assert [label for _, label in found] == index.labels.tolist()
    for row, (image, _) in enumerate(found):
        np.testing.assert_array_equal(np.asarray(image), pixels(index, row))


def test_timm_knows_how_many_samples_it_trains_on(packed: Path) -> None:
    options = {"split": "train", "is_training": True, "batch_size": 4}
    assert len(create_dataset("wds/", root=str(packed), **options)) == 24
