"""`mix` and `mix_patches`: the references against a loop over pixels, unfold and a convolution; the
kernels against the references.

.venv/bin/python -m pytest tests/kernels/test_mix.py, about 8 s
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from fastdeit.kernels import backend
from fastdeit.kernels.mix import mix, mix_plainly, mix_reference, mix_triton
from fastdeit.kernels.mix_patches import (
    mix_patches,
    mix_patches_reference,
    mix_patches_triton,
)
from tests.kernels import interpreter
from tests.kernels.interpreter import DEVICE, INTERPRETED
from tests.kernels.properties import given, settings, st

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

PATCHED = {
    "B4-16": (4, 32, 48, 16),
    "B2-one": (2, 16, 16, 16),
    "B4-14": (4, 28, 42, 14),
    "B2-8": (2, 8, 40, 8),
    "B2-7": (2, 21, 7, 7),
    "B6-1": (6, 3, 5, 1),
    "B2-32": (2, 32, 64, 32),
    "B2-blocks": (2, 48, 64, 16),
}

Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@pytest.fixture
def fused() -> Iterator[None]:
    with backend.use_backend("triton"):
        yield


def make_inputs(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Inputs:
    """Return images, lam and box; the pairs use Mixup, CutMix, a full box, lam 0 and 1 in turn."""
    batch, _, height, width = shape
    generator = torch.Generator().manual_seed(sum(shape))
    images = torch.randn(shape, generator=generator).to(dtype)
    lam = torch.rand(batch, generator=generator)
    lam[2::4] = 0.0
    lam[3::4] = 1.0
    boxes = [
        (0, 0, 0, 0),
        (1, 1, max(2, height - 1), max(2, width - 1)),
        (0, 0, height, width),
        (2, 3, 2, 5),
    ]
    box = torch.tensor([boxes[i % len(boxes)] for i in range(batch // 2)], dtype=torch.int32)
    return images.to(DEVICE), lam.to(DEVICE), box.repeat_interleave(2, 0).to(DEVICE)


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
    # interpreted, the kernel has the reference's operations; compiled, it may fuse multiply and add
    assert actual.dtype == expected.dtype and actual.stride() == expected.stride()
    exact = 0.0 if INTERPRETED else None
    torch.testing.assert_close(actual, expected, rtol=exact, atol=exact)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_mix_reference_equals_the_loop(shape: tuple[int, ...]) -> None:
    images, lam, box = make_inputs(shape)
    torch.testing.assert_close(mix_reference(images, lam, box), mix_by_pixel(images, lam, box))


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("boxes", ["some", "none", "all"])
def test_mix_on_a_cpu_has_the_bits_of_the_reference(
    boxes: str, dtype: torch.dtype, channels_last: bool
) -> None:
    images, lam, box = (tensor.cpu() for tensor in make_inputs((8, 3, 6, 10)))
    images[0, 0, 0, :4] = torch.tensor([-0.0, torch.nan, torch.inf, 0.0])
    if boxes != "some":
        box[:] = torch.tensor([1, 2, 5, 9] if boxes == "all" else [3, 3, 3, 9])
    before = images.clone()
    out = mix_plainly(images, lam, box, dtype, channels_last)
    expected = mix_reference(images, lam, box, dtype, channels_last)
    assert out.stride() == expected.stride()
    torch.testing.assert_close(out, expected, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(out.signbit()[~out.isnan()], expected.signbit()[~out.isnan()])
    assert torch.equal(images.view(torch.int32), before.view(torch.int32))


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=["from-nchw", "from-nhwc"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_mix_triton_equals_reference(
    shape: tuple[int, ...], layout: torch.memory_format, channels_last: bool
) -> None:
    images, lam, box = make_inputs(shape)
    images = images.contiguous(memory_format=layout)
    with interpreter.poisoned_memory():
        out = mix_triton(images, lam, box, images.dtype, channels_last)
    assert_same(out, mix_reference(images, lam, box, channels_last=channels_last))


@pytest.mark.parametrize("out_dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_mix_triton_in_every_dtype_equals_reference(
    dtype: torch.dtype, out_dtype: torch.dtype
) -> None:
    images, lam, box = make_inputs((8, 3, 6, 10), dtype)
    with interpreter.poisoned_memory():
        out = mix_triton(images, lam, box, out_dtype, False)
    assert_same(out, mix_reference(images, lam, box, out_dtype))


def test_mix_triton_over_several_blocks_equals_reference() -> None:
    images, lam, box = make_inputs((4, 3, 37, 41))
    assert_same(mix_triton(images, lam, box, images.dtype, False), mix_reference(images, lam, box))


def test_lam_of_one_keeps_the_image() -> None:
    images, _, _ = make_inputs((4, 3, 8, 8))
    lam = torch.ones(4, device=DEVICE)
    box = torch.zeros(4, 4, dtype=torch.int32, device=DEVICE)
    assert torch.equal(mix_reference(images, lam, box), images)
    assert torch.equal(mix_triton(images, lam, box, images.dtype, False), images)


def test_full_box_swaps_the_pair() -> None:
    images, lam, _ = make_inputs((4, 3, 8, 8))
    box = torch.tensor([[0, 0, 8, 8]] * 4, dtype=torch.int32, device=DEVICE)
    assert torch.equal(mix_reference(images, lam, box), images[[1, 0, 3, 2]])
    assert torch.equal(mix_triton(images, lam, box, images.dtype, False), images[[1, 0, 3, 2]])


def test_mix_runs_the_kernel_under_the_triton_backend(fused: None) -> None:
    images, lam, box = make_inputs((4, 3, 8, 8))
    for channels_last in (False, True):
        expected = mix_reference(images, lam, box, torch.bfloat16, channels_last)
        assert_same(mix(images, lam, box, torch.bfloat16, channels_last), expected)
    patches, mixed = mix_patches(images, lam, box, 4)
    assert mixed is None
    assert_same(patches, mix_patches_reference(images, lam, box, 4)[0])


@pytest.mark.parametrize("chosen", ["reference", "triton"])
def test_mix_accepts_an_empty_batch(chosen: str) -> None:
    images, lam, box = (tensor[:0] for tensor in make_inputs((2, 3, 8, 16)))
    with backend.use_backend(chosen):
        assert mix(images, lam, box, torch.bfloat16).shape == (0, 3, 8, 16)
        patches, mixed = mix_patches(images, lam, box, 8, with_images=True)
    assert mixed is not None and patches.shape == (0, 2, 192) and mixed.shape == (0, 3, 8, 16)


def test_mix_is_deterministic_and_keeps_its_inputs() -> None:
    inputs = make_inputs((4, 3, 16, 32), torch.float16)
    before = [tensor.clone() for tensor in inputs]
    first, again = (mix_patches_triton(*inputs, 16, torch.bfloat16, True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))


@pytest.mark.parametrize("shape", PATCHED.values(), ids=PATCHED)
def test_mix_patches_reference_equals_unfold(shape: tuple[int, int, int, int]) -> None:
    batch, height, width, patch = shape
    images, lam, box = make_inputs((batch, 3, height, width))
    patches, mixed = mix_patches_reference(images, lam, box, patch, with_images=True)
    expected = mix_reference(images, lam, box)
    assert mixed is not None and torch.equal(mixed, expected)
    assert torch.equal(patches, F.unfold(expected, patch, stride=patch).transpose(1, 2))


@pytest.mark.parametrize("with_images", [False, True], ids=["patches", "both"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=["from-nchw", "from-nhwc"])
@pytest.mark.parametrize("shape", PATCHED.values(), ids=PATCHED)
def test_mix_patches_triton_equals_reference(
    shape: tuple[int, int, int, int], layout: torch.memory_format, with_images: bool
) -> None:
    batch, height, width, patch = shape
    images, lam, box = make_inputs((batch, 3, height, width))
    images = images.contiguous(memory_format=layout)
    with interpreter.poisoned_memory():
        patches, mixed = mix_patches_triton(images, lam, box, patch, images.dtype, with_images)
    expected = mix_patches_reference(images, lam, box, patch, with_images=True)
    assert expected[1] is not None
    assert_same(patches, expected[0])
    if with_images:
        assert_same(mixed, expected[1])
        assert mixed.is_contiguous(memory_format=torch.channels_last)
    else:
        assert mixed.numel() == 0


@pytest.mark.parametrize("out_dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_mix_patches_triton_in_every_dtype_equals_reference(
    dtype: torch.dtype, out_dtype: torch.dtype
) -> None:
    images, lam, box = make_inputs((8, 3, 16, 24), dtype)
    with interpreter.poisoned_memory():
        patches, mixed = mix_patches_triton(images, lam, box, 8, out_dtype, True)
    expected = mix_patches_reference(images, lam, box, 8, out_dtype, with_images=True)
    assert expected[1] is not None
    assert_same(patches, expected[0])
    assert_same(mixed, expected[1])


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(1, 5),
    st.sampled_from([1, 2, 3, 5, 8, 14, 16]),
)
def test_mix_patches_triton_of_any_shape_equals_reference(
    pairs: int, rows: int, columns: int, patch: int
) -> None:
    images, lam, box = make_inputs((2 * pairs, 3, rows * patch, columns * patch), torch.float16)
    with interpreter.poisoned_memory():
        patches, mixed = mix_patches_triton(images, lam, box, patch, torch.bfloat16, True)
    expected = mix_patches_reference(images, lam, box, patch, torch.bfloat16, with_images=True)
    assert expected[1] is not None
    assert_same(patches, expected[0])
    assert_same(mixed, expected[1])


@pytest.mark.parametrize("patch", [16, 14, 8])
def test_patches_times_the_weight_equal_the_convolution(patch: int) -> None:
    images, lam, box = make_inputs((4, 3, 2 * patch, 3 * patch))
    generator = torch.Generator().manual_seed(patch)
    weight = (0.05 * torch.randn(24, 3, patch, patch, generator=generator)).to(DEVICE)
    bias = torch.randn(24, generator=generator).to(DEVICE)
    patches, mixed = mix_patches_triton(images, lam, box, patch, images.dtype, True)
    convolved = F.conv2d(mixed.double(), weight.double(), bias.double(), stride=patch)
    expected = convolved.flatten(2).transpose(1, 2)
    embedded = F.linear(patches, weight.flatten(1), bias)
    torch.testing.assert_close(embedded.double(), expected, rtol=1e-5, atol=1e-5)


def test_mix_passes_opcheck() -> None:
    inputs = make_inputs((4, 3, 8, 8))
    ops = torch.ops.fastdeit
    for flag in (False, True):
        torch.library.opcheck(ops.mix.default, (*inputs, torch.bfloat16, flag))
        torch.library.opcheck(ops.mix_patches.default, (*inputs, 4, torch.bfloat16, flag))


@pytest.mark.gpu
def test_mix_is_captured_in_a_cuda_graph_without_a_sync() -> None:
    inputs = make_inputs((8, 3, 64, 64), torch.float16)
    expected = mix_patches_reference(*inputs, 16, torch.bfloat16, with_images=True)
    mix_patches(*inputs, 16, torch.bfloat16, with_images=True)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        patches, mixed = mix_patches(*inputs, 16, torch.bfloat16, with_images=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        replayed, _ = mix_patches(*inputs, 16, torch.bfloat16, with_images=True)
    graph.replay()
    assert mixed is not None and expected[1] is not None
    assert_same(patches, expected[0])
    assert_same(mixed, expected[1])
    assert_same(replayed, expected[0])


@pytest.mark.gpu
def test_mix_of_1024_images_equals_reference() -> None:
    images, lam, box = make_inputs((1024, 3, 224, 224), torch.float16)
    patches, mixed = mix_patches(images, lam, box, 16, torch.bfloat16, with_images=True)
    last = (images[-8:], lam[-8:], box[-8:])
    expected = mix_patches_reference(*last, 16, torch.bfloat16, with_images=True)
    assert mixed is not None and expected[1] is not None
    assert_same(patches[-8:], expected[0])
    assert_same(mixed[-8:], expected[1])


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
def test_mix_rejects_wrong_arguments(change: dict[str, torch.Tensor], message: str) -> None:
    images, lam, box = make_inputs((4, 3, 4, 4))
    good: dict[str, Any] = {"images": images, "lam": lam, "box": box}
    with pytest.raises(ValueError, match=message):
        mix(**good | change)


@pytest.mark.parametrize(
    ("shape", "patch", "message"),
    [
        ((4, 3, 8, 8), 0, "got 0"),
        ((4, 3, 33, 33), 33, "1 to 32"),
        ((4, 3, 8, 6), 4, "multiples of 4"),
        ((4, 1, 8, 8), 4, "3, H"),
    ],
)
def test_mix_patches_rejects_wrong_arguments(
    shape: tuple[int, ...], patch: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        mix_patches(*make_inputs(shape), patch)
