"""DALI's own pipeline: normalised batches, of which a quarter has an erased box.

.venv/bin/python -m pytest tests/benchmarks/loaders/test_auto_aug.py, about 5 s
"""

from pathlib import Path

import pytest
import torch

from benchmarks.loaders.auto_aug import start_auto_aug
from benchmarks.loaders.case import BATCH, Case
from benchmarks.loaders.images import write_images, write_shards


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    write_images(root, 4, links=2)
    write_shards(root / "tars", root)
    return root


@pytest.mark.parametrize("data", ["folder", "tars"])
def test_batches_are_normalised_and_a_quarter_is_erased(root: Path, data: str) -> None:
    batches, _ = start_auto_aug(
        Case(str(root), data, samples=8, size=32, workers=1, augments=False)
    )
    images = torch.cat([next(batches).clone() for _ in range(4)])
    assert images.shape == (4 * BATCH, 3, 32, 32) and images.dtype == torch.float32
    assert images.abs().max() < 3
    # zeros are rare but in a box
    erased = ((images == 0).flatten(1).float().mean(1) > 0.01).float().mean().item()
    assert 0.15 < erased < 0.35
