"""`resize`: the reference against PIL and the exact backend, bit for bit.

.venv/bin/python -m pytest tests/kernels/test_resize.py
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fastdeit.kernels.resize import resize, resize_reference
from tests.kernels.interpreter import DEVICE
from tests.support.timm_ops import picture

Crop = tuple[int, int]
Window = tuple[int, int, int, int]
RUNS = [resize_reference]


def pack(
    crops: Sequence[np.ndarray], windows: Sequence[Window], flips: Sequence[bool]
) -> dict[str, torch.Tensor]:
    """Return the arguments of `resize` for crops that lie in a buffer with bytes between them and
    between their rows."""
    chunks = [np.zeros(0, np.uint8)]
    start: list[int] = []
    stride: list[int] = []
    for number, crop in enumerate(crops):
        gap = number % 4
        wide = np.full((len(crop), 3 * crop.shape[1] + gap), 77, np.uint8)
        wide[:, : 3 * crop.shape[1]] = crop.reshape(len(crop), -1)
        start.append(sum(chunk.size for chunk in chunks) + gap)
        stride.append(wide.shape[1])
        chunks.append(np.concatenate((np.full(gap, 99, np.uint8), wide.reshape(-1))))
    return {
        "packed": torch.from_numpy(np.concatenate(chunks)).to(DEVICE),
        "start": torch.tensor(start, dtype=torch.int64),
        "stride": torch.tensor(stride, dtype=torch.int32),
        "shape": torch.tensor([crop.shape[:2] for crop in crops], dtype=torch.int32).view(-1, 2),
        "window": torch.tensor(windows, dtype=torch.int32).view(-1, 4),
        "flip": torch.tensor(flips, dtype=torch.bool),
    }


def by_pil(crop: np.ndarray, window: Window, flip: bool, size: int) -> np.ndarray:
    """Resize the whole crop by PIL, reflect it beyond its edges by NumPy, cut out the window."""
    height, width, y, x = window
    resized = np.asarray(Image.fromarray(crop).resize((width, height), Image.Resampling.BICUBIC))
    beside = [(max(0, -at), max(0, at + size - side)) for at, side in ((y, height), (x, width))]
    padded = np.pad(resized, (*beside, (0, 0)), mode="reflect")
    top, left = max(y, 0), max(x, 0)
    kept = padded[top : top + size, left : left + size]
    return kept[:, ::-1] if flip else kept


def check(
    run: Any, shapes: Sequence[Crop], windows: Sequence[Window], flips: Sequence[bool], size: int
) -> None:
    """Assert that crops of these shapes are resized as by PIL."""
    crops = [picture(seed, *shape) for seed, shape in enumerate(shapes)]
    expected = [by_pil(*arguments, size) for arguments in zip(crops, windows, flips, strict=True)]
    out = run(**pack(crops, windows, flips), size=size)
    torch.testing.assert_close(out.cpu().numpy(), np.stack(expected), rtol=0, atol=0)


# crop, window (resized height and width, y and x)
CASES: dict[str, tuple[Crop, Window]] = {
    "smaller": ((97, 131), (24, 24, 0, 0)),
    "larger": ((9, 7), (24, 24, 0, 0)),
    "same": ((24, 24), (24, 24, 0, 0)),
    "one pixel": ((1, 1), (24, 24, 0, 0)),
    "one row": ((1, 300), (24, 24, 0, 0)),
    "one column": ((300, 1), (24, 24, 0, 0)),
    "tall": ((3000, 2), (24, 24, 0, 0)),
    "tall, higher still": ((210, 2), (230, 24, 150, 0)),
    "wide": ((2, 3000), (24, 24, 0, 0)),
    "many taps": ((800, 700), (24, 24, 0, 0)),
    "inner window": ((90, 140), (36, 56, 5, 17)),
    "beyond the edges": ((60, 50), (24, 24, -4, 4)),
    "far beyond the edges": ((60, 50), (10, 9, -9, -5)),
    "smaller than its window": ((300, 50), (5, 1, -2, -6)),
}


@pytest.mark.parametrize("run", RUNS)
def test_crops_of_any_shape_equal_pil(run: Any) -> None:
    shapes, windows = zip(*CASES.values(), strict=True)
    check(run, shapes, windows, [False] * len(CASES), 24)
    check(run, shapes[::-1], windows[::-1], [True] * len(CASES), 24)


@pytest.mark.parametrize("run", [resize, *RUNS])
def test_empty_batch_stays_empty(run: Any) -> None:
    out = run(**pack([], [], []), size=5)
    assert out.shape == (0, 5, 5, 3) and out.dtype == torch.uint8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"packed": torch.zeros(99)}, "packed must be uint8"),
        ({"packed": torch.zeros(9, 9, dtype=torch.uint8)}, r"\(9, 9\)"),
        ({"start": torch.zeros(2, dtype=torch.int32)}, r"start must be int64 \(2,\) on the CPU"),
        ({"stride": torch.zeros(3, dtype=torch.int32)}, r"stride must be int32 \(2,\)"),
        ({"shape": torch.ones(2, 3, dtype=torch.int32)}, r"shape must be int32 \(2, 2\)"),
        ({"window": torch.ones(2, 4)}, r"window must be int32 \(2, 4\)"),
        ({"flip": torch.zeros(2, dtype=torch.uint8)}, r"flip must be bool \(2,\)"),
        ({"flip": torch.zeros(2, dtype=torch.bool, device="meta")}, "on meta"),
        ({"shape": torch.tensor([[2, 2], [0, 2]], dtype=torch.int32)}, r"crop 1 .* \(0, 2\)"),
        ({"window": torch.tensor([[4, -1, 0, 0]] * 2, dtype=torch.int32)}, r"crop 0 .* \(4, -1\)"),
        ({"start": torch.tensor([0, -1])}, "crop 1 must be inside .* -1 to"),
        ({"start": torch.tensor([0, 16])}, "crop 1 must be inside the 27 bytes"),
        ({"stride": torch.tensor([6, 999], dtype=torch.int32)}, "crop 1 must be inside"),
        ({"stride": torch.tensor([6, -6], dtype=torch.int32)}, "crop 1 must be inside"),
        ({"size": 0}, "size must be at least 1"),
    ],
)
def test_wrong_arguments_are_refused(change: dict[str, Any], message: str) -> None:
    crops = [np.zeros((2, 2, 3), np.uint8)] * 2
    good: dict[str, Any] = pack(crops, [(4, 4, 0, 0)] * 2, [False] * 2) | {"size": 4}
    resize(**good)
    with pytest.raises(ValueError, match=message):
        resize(**good | change)
