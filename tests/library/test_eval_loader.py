"""The evaluation loader of the library."""

from pathlib import Path

import pytest
import torch

from fastdeit.data.formats.digits import write_digits
from fastdeit.library.eval_loader import DEFAULT_VIEW, create_eval_loader

VIEW = DEFAULT_VIEW._replace(size=16)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("digits")
    write_digits(root)
    return root


def test_every_image_comes_once_over_all_ranks(digits: Path) -> None:
    loader = create_eval_loader(digits, view=VIEW, batch_size=100, device="cpu")
    alone = list(loader)
    labels = torch.cat([labels for _, labels in alone])
    assert len(loader) == len(alone) and len(labels) == len(loader.dataset) and labels.min() == 0
    assert alone[0][0].shape == (100, 3, 16, 16)
    rows = []
    for rank in range(2):
        loader = create_eval_loader(
            digits, view=VIEW, batch_size=50, raw=True, device="cpu", rank=rank, world_size=2
        )
        rows += [row for batch in loader for row in batch.image_index[batch.labels >= 0].tolist()]
    assert sorted(rows) == list(range(len(loader.dataset)))


def test_the_view_decides_the_pixels(digits: Path) -> None:
    views = (VIEW, VIEW._replace(crop_pct=1.0), VIEW._replace(mean=(0.0, 0.0, 0.0)))
    first = [
        next(iter(create_eval_loader(digits, view=view, batch_size=8, device="cpu")))[0]
        for view in views
    ]
    assert not torch.equal(first[0], first[1]) and not torch.equal(first[0], first[2])


def test_a_bad_argument_is_named(digits: Path) -> None:
    with pytest.raises(ValueError, match="^eval_crop_ratio must be above 0"):
        create_eval_loader(digits, view=VIEW._replace(crop_pct=0.0), device="cpu")
    with pytest.raises(ValueError, match=r"^batch_size must be 1 or more \(got 0\)$"):
        create_eval_loader(digits, view=VIEW, batch_size=0, device="cpu")
    with pytest.raises((ValueError, FileNotFoundError), match="nowhere"):
        create_eval_loader("nowhere", device="cpu")
