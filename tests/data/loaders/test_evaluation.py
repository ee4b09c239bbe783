"""The evaluation loader: every image once over the ranks, in equal passes."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from fastdeit.data.index import Index
from fastdeit.data.loaders.evaluation import PADDING, EvalLoader
from tests.support.noise_images import IMAGES, SIDE, split_options, write_noise


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    return write_noise(tmp_path_factory.mktemp("images"))


def eval_loader(index: Index, **changes: Any) -> EvalLoader:
    options, ours = split_options({"num_threads": 1, **changes})
    return EvalLoader(
        index, options, **{"batch_size": 32, "input_size": SIDE, "crop_pct": 0.875, **ours}
    )


@pytest.fixture(scope="module")
def evaluated(index: Index) -> torch.Tensor:
    """(150, 3, S, S) in the order of the index."""
    batches = list(eval_loader(index, batch_size=50))
    rows = [batch.image_index.tolist() for batch in batches]
    assert rows == np.arange(IMAGES).reshape(3, 50).tolist()
    return torch.cat([batch.images for batch in batches])


@pytest.mark.parametrize("batch_size", [7, 32, 64])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_every_image_once_over_the_ranks(
    index: Index, evaluated: torch.Tensor, world_size: int, batch_size: int
) -> None:
    ranks = [
        list(eval_loader(index, batch_size=batch_size, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    assert len({len(batches) for batches in ranks}) == 1
    seen = []
    for batch in (batch for batches in ranks for batch in batches):
        assert len(batch.labels) == batch_size
        real = batch.labels != PADDING
        rows = batch.image_index[real]
        assert batch.labels[real].tolist() == index.labels[rows.numpy()].tolist()
        assert torch.equal(batch.images[real], evaluated[rows])
        seen += rows.tolist()
    assert sorted(seen) == list(range(IMAGES))


def test_passes_are_equal_even_after_an_unfinished_one(index: Index) -> None:
    loader = eval_loader(index)
    assert len(loader) == 5
    first = list(loader)
    next(iter(loader))
    for _ in range(2):
        again = list(loader)
        assert len(again) == 5
        for one, other in zip(first, again, strict=True):
            assert torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)


def test_a_thread_that_reads_ahead_changes_nothing(index: Index) -> None:
    for one, other in zip(eval_loader(index), eval_loader(index, read_ahead=True), strict=True):
        assert torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)
        assert torch.equal(one.image_index, other.image_index)


def test_nothing_is_read_ahead_of_the_end_of_a_pass(index: Index) -> None:
    loader = eval_loader(index, read_ahead=True)
    for _ in range(2):
        assert len(list(loader)) == 5 and loader._ahead._task is None
    loader.close()


def test_there_may_be_more_ranks_than_images(index: Index) -> None:
    few = dataclasses.replace(
        index, names=index.names[:2], labels=index.labels[:2], sizes=index.sizes[:2]
    )
    counts = [
        sum(int((b.labels != PADDING).sum()) for b in eval_loader(few, rank=rank, world_size=3))
        for rank in range(3)
    ]
    assert counts == [1, 1, 0]
