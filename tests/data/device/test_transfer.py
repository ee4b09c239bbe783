"""Small arrays of a batch on their way to its device: one copy of one block."""

import numpy as np
import pytest
import torch

from fastdeit.data.device.transfer import ALIGNMENT, send_together
from tests.support.copies import Copies


def small_arrays() -> list[np.ndarray]:
    """Return arrays of the shapes and dtypes of a batch of 14: ends that are no multiple of 16
    bytes, one empty array, one with gaps."""
    rng = np.random.default_rng(0)
    labels, lam, box = (
        rng.integers(0, 9, 14),
        rng.random(13, np.float32),
        rng.integers(0, 9, (14, 4), np.int32),
    )
    return [
        labels,
        lam,
        box,
        rng.random((14, 3, 2)) < 0.5,
        np.zeros((14, 0, 2), bool),
        rng.integers(0, 9, (14, 10))[:, ::2],
    ]


def test_small_arrays_are_sent_in_one_copy() -> None:
    arrays = small_arrays()
    with Copies() as copies:
        sent = send_together(arrays, torch.device("meta"))
    assert copies.made == [("meta", False)]
    assert [tuple(tensor.shape) for tensor in sent] == [array.shape for array in arrays]
    assert all(tensor.is_contiguous() for tensor in sent)


def test_sent_arrays_are_aligned_parts_of_one_block() -> None:
    arrays = small_arrays()
    sent = send_together(arrays, torch.device("cpu"))
    assert len({tensor.untyped_storage().data_ptr() for tensor in sent}) == 1
    for tensor, array in zip(sent, arrays, strict=True):
        assert tensor.data_ptr() % ALIGNMENT == 0 or not tensor.numel()
        np.testing.assert_array_equal(tensor, array, strict=True)


@pytest.mark.gpu
def test_pinned_memory_is_not_used_again_before_its_copy() -> None:
    torch.cuda._sleep(200_000_000)  # about 0.1 s in which no copy begins
    sent = [send_together([np.full(1000, number)], torch.device("cuda"))[0] for number in range(50)]
    assert all(bool((tensor == number).all()) for number, tensor in enumerate(sent))
