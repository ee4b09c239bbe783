"""The images that a run began with, beside those that are there when it resumes."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from fastdeit.data.indexing import build_index
from fastdeit.data.snapshot import keep_images, reconcile
from tests.support.images import write_shapes


@pytest.mark.parametrize("changed", ["sizes", "num_bytes"])
def test_image_of_another_size_or_length_is_gone(changed: str, tmp_path: Path) -> None:
    index = build_index(write_shapes(tmp_path / "set", train=2, val=1), "train")
    keep_images(index, tmp_path / "images.parquet")
    values = getattr(index, changed).copy()
    values[3] += 1
    now = dataclasses.replace(index, **{changed: values})
    then, gone = reconcile(now, tmp_path / "images.parquet")
    assert list(gone) == [3] and then.fingerprint() == index.fingerprint()
    np.testing.assert_array_equal(then.sizes, index.sizes)
