"""Decoded windows out of DALI in one buffer: in their order, and never more than was planned."""

from typing import Any

import numpy as np
import pytest
import torch
from nvidia.dali.tensors import TensorCPU, TensorListCPU

from fastdeit.data.loaders.packed import take_packed

SIZES = [(4, 5), (1, 1), (7, 2)]


def decoded() -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.integers(0, 256, (*size, 3), np.uint8) for size in SIZES]


def listed(images: list[np.ndarray]) -> TensorListCPU:
    return TensorListCPU([TensorCPU(image, "HWC") for image in images], "HWC")


def windows(sizes: list[tuple[int, int]]) -> np.ndarray:
    return np.array([(3, 4, *size) for size in sizes], np.int32)


def test_images_lie_one_after_the_other() -> None:
    images = decoded()
    packed = take_packed(listed(images), windows(SIZES))
    assert packed.dtype == torch.uint8
    np.testing.assert_array_equal(packed, np.concatenate([image.ravel() for image in images]))


@pytest.mark.parametrize("wrong", [SIZES[:2], [*SIZES[:2], (7, 1)], [*SIZES[:2], (2, 7)]])
def test_other_images_than_planned_are_not_copied(wrong: list[tuple[int, int]]) -> None:
    with pytest.raises(RuntimeError, match="other sizes than planned"):
        take_packed(listed(decoded()), windows(wrong))


@pytest.mark.gpu
def test_a_buffer_of_the_gpu_is_whole_while_the_current_stream_is_busy() -> None:
    from nvidia.dali.tensors import TensorListGPU

    images = decoded()
    torch.cuda._sleep(200_000_000)  # about 0.1 s: the copy must not wait for it
    on_gpu: Any = listed(images)._as_gpu()  # type: ignore[attr-defined]
    assert isinstance(on_gpu, TensorListGPU)
    packed = take_packed(on_gpu, windows(SIZES))
    assert not torch.cuda.current_stream().query()
    assert packed.is_cuda
    expected = np.concatenate([image.ravel() for image in images])
    np.testing.assert_array_equal(packed.cpu(), expected)
