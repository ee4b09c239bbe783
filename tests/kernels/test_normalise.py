"""`normalise`: reference and kernel equal the last operations of the CPU's backend `exact` in every
bit.

.venv/bin/python -m pytest tests/kernels/test_normalise.py, about 12 s
"""

import functools
from collections.abc import Iterator
from typing import Any

import numba
import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from fastdeit.data.augment import sample
from fastdeit.kernels import backend, launch_configs
from fastdeit.kernels.normalise import (
    DTYPES,
    MODES,
    Pixels,
    level_values,
    normalise,
    normalise_reference,
    normalise_triton,
    touches,
)
from tests.kernels import interpreter
from tests.kernels.interpreter import DEVICE
from tests.kernels.properties import given, settings, st

interpreter.correct()
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SHAPES = {"B6-33": (6, 33, 33), "B5-wide": (5, 3, 65), "B3-tall": (3, 41, 7), "B2-1": (2, 1, 1)}


LAYOUTS = (torch.contiguous_format, torch.channels_last)


@triton.jit
def _touches_kernel(box_ptr, start_ptr, out_ptr, W, BLOCK: tl.constexpr, COUNT: tl.constexpr):
    i = tl.arange(0, COUNT)
    found = touches(box_ptr + i * 4, tl.load(start_ptr + i), W, BLOCK)
    tl.store(out_ptr + i, found.to(tl.int32))


@functools.cache
def cpu_tail():  # type: ignore[no-untyped-def]
    """Compile what the CPU does to a batch after its operations."""

    def run(images, mean, std, erase, mode, keys, out):  # type: ignore[no-untyped-def]
        table = np.empty((3, 256), np.uint8)
        for c in range(3):
            table[c] = np.arange(256)
        for i in range(len(images)):
            sample._normalise(images[i], table, mean, std, out[i])
            if erase[i, 2] > 0:
                high, low = keys[i] >> np.uint64(32), keys[i] & np.uint64(0xFFFFFFFF)
                sample._erase(erase[i], mode, high, low, out[i])

    return numba.njit(run)


def cpu_images(pixels: Pixels) -> torch.Tensor:
    """Return fp32 (B, 3, H, W), computed by the compiled augmentation."""
    planes = pixels.images.permute(0, 3, 1, 2).contiguous().cpu().numpy()
    keys = pixels.key.cpu().numpy().view(np.uint64)
    out = np.empty(planes.shape, np.float32)
    mode = MODES.index(pixels.mode)
    cpu_tail()(planes, np.array(MEAN), np.array(STD), pixels.erase.cpu().numpy(), mode, keys, out)
    return torch.from_numpy(out).to(DEVICE)


def make_pixels(shape: tuple[int, int, int], mode: str = "pixel") -> Pixels:
    """Return random images; boxes in turn of any place and size, the whole image, no height, no
    width, one pixel in the last corner."""
    batch, height, width = shape
    rng = np.random.default_rng(sum(shape))
    erase = np.zeros((batch, 4), np.int32)
    for i in range(batch):
        h, w = int(rng.integers(1, height + 1)), int(rng.integers(1, width + 1))
        drawn = (int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w)
        corner = (height - 1, width - 1, 1, 1)
        boxes = [drawn, (0, 0, height, width), (1, 1, 0, 5), (1, 1, 5, 0), corner]
        erase[i] = boxes[i % len(boxes)]
    images = rng.integers(0, 256, (batch, height, width, 3), np.uint8)
    keys = rng.integers(0, 2**64, batch, np.uint64).view(np.int64)
    tensors = [torch.from_numpy(array).to(DEVICE) for array in (images, erase, keys)]
    return Pixels(tensors[0], level_values(MEAN, STD).to(DEVICE), tensors[1], mode, tensors[2])


def run_triton(pixels: Pixels, dtype: torch.dtype, channels_last: bool = False) -> torch.Tensor:
    images, levels, erase, mode, key = pixels
    return normalise_triton(images, levels, erase, key, MODES.index(mode), dtype, channels_last)


def assert_same_bits(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    for layout in LAYOUTS:
        if actual.ndim == 4:
            assert actual.is_contiguous(memory_format=layout) == expected.is_contiguous(
                memory_format=layout
            )
    bits = torch.int32 if expected.dtype == torch.float32 else torch.int16
    assert torch.equal(actual.view(bits), expected.view(bits))


def test_modes_are_those_of_the_cpu() -> None:
    assert MODES == sample.MODES


def test_levels_are_those_of_the_cpu() -> None:
    pixels = make_pixels((1, 16, 16))
    ramp = torch.arange(256, dtype=torch.uint8, device=DEVICE).view(1, 16, 16, 1)
    pixels = pixels._replace(images=ramp.expand(1, 16, 16, 3), erase=0 * pixels.erase)
    assert_same_bits(cpu_images(pixels)[0].view(3, 256), pixels.levels)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_normalise_has_the_bits_of_the_cpu(shape: tuple[int, int, int], mode: str) -> None:
    pixels = make_pixels(shape, mode)
    expected = cpu_images(pixels)
    assert_same_bits(normalise_reference(*pixels), expected)
    with interpreter.poisoned_memory():
        out = run_triton(pixels, torch.float32)
    assert_same_bits(out, expected)


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_and_layout_is_rounded_from_fp32(
    dtype: torch.dtype, channels_last: bool
) -> None:
    pixels = make_pixels((4, 9, 14))
    layout = torch.channels_last if channels_last else torch.contiguous_format
    expected = cpu_images(pixels).to(dtype).contiguous(memory_format=layout)
    with interpreter.poisoned_memory():
        assert_same_bits(run_triton(pixels, dtype, channels_last), expected)
    assert_same_bits(normalise_reference(*pixels, dtype, channels_last), expected)


@pytest.mark.parametrize(("height", "width", "block"), [(9, 7, 4), (6, 5, 8), (3, 3, 16)])
def test_a_block_is_touched_if_a_pixel_of_it_is_inside_the_box(
    height: int, width: int, block: int
) -> None:
    rng = np.random.default_rng(0)
    count = 4096
    corner = rng.integers(0, (height, width), (count, 2))
    size = rng.integers(0, (height, width) - corner + 1)
    box = np.concatenate([corner, size], 1).astype(np.int32)
    start = (rng.integers(0, -(-height * width // block), count) * block).astype(np.int32)
    pixel = np.arange(block) + start[:, None]
    y, x = pixel // width - corner[:, :1], pixel % width - corner[:, 1:]
    expected = ((y >= 0) & (y < size[:, :1]) & (x >= 0) & (x < size[:, 1:])).any(1)
    out = torch.empty(count, dtype=torch.int32, device=DEVICE)
    boxes, starts = (torch.from_numpy(array).to(DEVICE) for array in (box, start))
    _touches_kernel[(1,)](boxes, starts, out, width, BLOCK=block, COUNT=count)
    assert 0 < expected.sum() < count
    assert out.bool().tolist() == expected.tolist()


@settings(max_examples=5, deadline=None, derandomize=True)
@given(st.integers(1, 20), st.integers(1, 40), st.sampled_from(MODES), st.sampled_from([64, 256]))
def test_blocks_and_parts_of_any_shape_join_without_a_gap(
    height: int, width: int, mode: str, block: int
) -> None:
    pixels = make_pixels((2, height, width), mode)
    row = next(row for row in launch_configs.rows() if row["op"] == "normalise")
    before = row["launch"]
    launch_configs._find_row.cache_clear()
    try:
        row["launch"] = before | {"BLOCK": block, "BLOCK_PART": block // 4}
        with interpreter.poisoned_memory():
            out = run_triton(pixels, torch.float32)
    finally:
        row["launch"] = before
        launch_configs._find_row.cache_clear()
    assert_same_bits(out, normalise_reference(*pixels))


def test_plans_keys_give_the_cpus_noise() -> None:
    """uint64 keys of the plan enter as the int64 of the same bits."""
    pixels = make_pixels((2, 8, 8))
    keys = np.array([2**64 - 1, 1 << 63], np.uint64)
    pixels = pixels._replace(key=torch.from_numpy(keys.view(np.int64)).to(DEVICE))
    assert_same_bits(run_triton(pixels, torch.float32), cpu_images(pixels))


@pytest.fixture
def fused() -> Iterator[None]:
    with backend.use_backend("triton"):
        yield


def test_normalise_runs_the_kernel_under_the_triton_backend(
    fused: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = make_pixels((3, 6, 5))
    expected = cpu_images(pixels)
    monkeypatch.setattr("fastdeit.kernels.normalise.normalise_reference", None)
    assert_same_bits(normalise(*pixels), expected)


@pytest.mark.parametrize("chosen", ["reference", "triton"])
def test_strided_arguments_and_an_empty_batch_are_accepted(chosen: str) -> None:
    whole = make_pixels((4, 6, 5))
    half = whole._replace(images=whole.images[::2], erase=whole.erase[::2], key=whole.key[::2])
    empty = whole._replace(images=whole.images[:0], erase=whole.erase[:0], key=whole.key[:0])
    with backend.use_backend(chosen):
        assert_same_bits(normalise(*half), cpu_images(whole)[::2].contiguous())
        assert normalise(*empty, torch.float16).shape == (0, 3, 6, 5)


def test_normalise_keeps_its_inputs_and_passes_opcheck() -> None:
    images, levels, erase, _, key = pixels = make_pixels((2, 3, 4))
    before = [tensor.clone() for tensor in (images, levels, erase, key)]
    arguments = (images, levels, erase, key, 2, torch.bfloat16, True)
    torch.library.opcheck(torch.ops.fastdeit.normalise.default, arguments)
    normalise_reference(*pixels)
    after = (images, levels, erase, key)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"images": torch.zeros(2, 3, 4, 4)},
            r"images must be uint8 .B, H, W, 3. .got torch.float",
        ),
        ({"images": torch.zeros(2, 3, 4, 4, dtype=torch.uint8)}, r"images must be uint8"),
        ({"levels": torch.zeros(256)}, r"levels must be torch.float32 \(3, 256\)"),
        ({"erase": torch.zeros(2, 4)}, r"erase must be torch.int32 \(2, 4\)"),
        ({"key": torch.zeros(2, dtype=torch.int32)}, r"key must be torch.int64 \(2,\)"),
        ({"mode": "noise"}, r"mode must be one of const, rand, pixel \(got 'noise'\)"),
        ({"dtype": torch.float64}, "dtype must be among"),
    ],
)
def test_normalise_rejects_wrong_arguments(change: dict[str, Any], message: str) -> None:
    good = make_pixels((2, 4, 4))._asdict()
    with pytest.raises(ValueError, match=message):
        normalise(**good | change)


@pytest.mark.gpu
def test_normalise_is_captured_in_a_cuda_graph_without_a_sync() -> None:
    pixels = make_pixels((8, 64, 64))
    expected = cpu_images(pixels)
    normalise(*pixels)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        out = normalise(*pixels)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert_same_bits(out, expected)


@pytest.mark.gpu
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
def test_normalise_of_256_images_on_a_gpu_has_the_bits_of_the_cpu(channels_last: bool) -> None:
    pixels = make_pixels((256, 224, 224))
    out = normalise(*pixels, channels_last=channels_last)
    assert torch.equal(out, cpu_images(pixels))
