"""`mix`: the reference against a loop over pixels, the kernel against the reference."""

from typing import Any

import pytest
import torch

from fastdeit.kernels.mix import mix, mix_reference, mix_triton
from tests.kernels import interpreter
from tests.kernels.interpreter import DEVICE, INTERPRETED

interpreter.correct()
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SHAPES = {
    "B4-8": (4, 3, 8, 8),
    "B2-ragged": (2, 3, 5, 7),
    "B2-1": (2, 3, 1, 1),
    "B6-wide": (6, 3, 3, 33),
    "B2-c1": (2, 1, 4, 6),
}
LAYOUTS = [torch.contiguous_format, torch.channels_last]

Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def make_inputs(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Inputs:
    """Pairs that go through Mixup, CutMix, a full box, lam 0 and lam 1 in turn."""
    batch, _, height, width = shape
    drawn = torch.Generator().manual_seed(sum(shape))
    images = torch.randn(shape, generator=drawn).to(dtype)
    lam = torch.rand(batch // 2, generator=drawn)
    lam[1::3], lam[2::3] = 0.0, 1.0
    boxes = [(0, 0, 0, 0), (1, 1, max(2, height - 1), max(2, width - 1)), (0, 0, height, width), (2, 3, 2, 5)]
    box = torch.tensor([boxes[i % len(boxes)] for i in range(batch // 2)], dtype=torch.int32)
    return images.to(DEVICE), lam.repeat_interleave(2).to(DEVICE), box.repeat_interleave(2, 0).to(DEVICE)


def mix_by_pixel(images: torch.Tensor, lam: torch.Tensor, box: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(images)
    for i, (y0, x0, y1, x1) in enumerate(box.tolist()):
        for y in range(images.shape[2]):
            for x in range(images.shape[3]):
                own, other = images[i, :, y, x], images[i ^ 1, :, y, x]
                if y1 > y0 and x1 > x0:
                    out[i, :, y, x] = other if y0 <= y < y1 and x0 <= x < x1 else own
                else:
                    out[i, :, y, x] = lam[i] * own + (1 - lam[i]) * other
    return out


def assert_same(actual: torch.Tensor, expected: torch.Tensor) -> None:
    # interpreted, the kernel does the reference's operations one by one; compiled, it may fuse a multiply and an add
    assert actual.dtype == expected.dtype and actual.stride() == expected.stride()
    exact = 0.0 if INTERPRETED else None
    torch.testing.assert_close(actual, expected, rtol=exact, atol=exact)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_mix_reference_equals_the_loop(shape: tuple[int, ...]) -> None:
    images, lam, box = make_inputs(shape)
    torch.testing.assert_close(mix_reference(images, lam, box), mix_by_pixel(images, lam, box))


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=["from-nchw", "from-nhwc"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_mix_triton_equals_reference(shape: tuple[int, ...], layout: torch.memory_format, channels_last: bool) -> None:
    images, lam, box = make_inputs(shape)
    images = images.contiguous(memory_format=layout)
    with interpreter.poisoned_memory():
        out = mix_triton(images, lam, box, channels_last=channels_last)
    assert_same(out, mix_reference(images, lam, box, channels_last=channels_last))


@pytest.mark.parametrize("out_dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_mix_triton_in_every_dtype(dtype: torch.dtype, out_dtype: torch.dtype) -> None:
    images, lam, box = make_inputs((8, 3, 6, 10), dtype)
    with interpreter.poisoned_memory():
        out = mix_triton(images, lam, box, out_dtype)
    assert_same(out, mix_reference(images, lam, box, out_dtype))


def test_mix_triton_over_several_blocks() -> None:
    images, lam, box = make_inputs((4, 3, 37, 41))
    assert_same(mix_triton(images, lam, box), mix_reference(images, lam, box))


def test_mix_leaves_a_row_alone_with_lam_one() -> None:
    images, _, _ = make_inputs((4, 3, 8, 8))
    lam, box = torch.ones(4, device=DEVICE), torch.zeros(4, 4, dtype=torch.int32, device=DEVICE)
    assert torch.equal(mix(images, lam, box), images)
    assert torch.equal(mix_triton(images, lam, box), images)


def test_mix_swaps_a_pair_with_a_full_box() -> None:
    images, lam, _ = make_inputs((4, 3, 8, 8))
    box = torch.tensor([[0, 0, 8, 8]] * 4, dtype=torch.int32, device=DEVICE)
    assert torch.equal(mix(images, lam, box), images[[1, 0, 3, 2]])
    assert torch.equal(mix_triton(images, lam, box), images[[1, 0, 3, 2]])


def test_mix_is_a_well_formed_operator() -> None:
    images, lam, box = make_inputs((4, 3, 8, 8))
    for channels_last in (False, True):
        arguments = (images, lam, box, torch.bfloat16, channels_last)
        torch.library.opcheck(torch.ops.fastdeit.mix.default, arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.zeros(3, 3, 4, 4)}, "B even"),
        ({"images": torch.zeros(4, 3, 4, 4, dtype=torch.float64)}, "float64"),
        ({"lam": torch.zeros(2)}, "must be"),
        ({"lam": torch.zeros(4, dtype=torch.float64)}, "float32"),
        ({"box": torch.zeros(4, 4, dtype=torch.int64)}, "int32"),
    ],
)
def test_mix_refuses(change: dict[str, torch.Tensor], message: str) -> None:
    good: dict[str, Any] = dict(zip(("images", "lam", "box"), make_inputs((4, 3, 4, 4)), strict=True))
    with pytest.raises(ValueError, match=message):
        mix(**{**good, **change})
