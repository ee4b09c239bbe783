"""`resize`: the reference and the kernels against PIL and the exact backend, bit for bit.

.venv/bin/python -m pytest tests/kernels/test_resize.py, about 20 s
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from triton.runtime import interpreter

from fastdeit.kernels import resize as module
from fastdeit.kernels.resize import resize, resize_reference, resize_triton
from fastdeit.kernels.resize_kernels import passes, weights
from tests.kernels.interpreter import DEVICE, INTERPRETED, poisoned_memory
from tests.kernels.properties import HealthCheck, given, settings, st
from tests.support.launching import ROOT
from tests.support.timm_ops import picture

Shape = tuple[int, int]
Window = tuple[int, int, int, int]
RUNS = [resize_reference, resize_triton]


@pytest.fixture(autouse=True)
def large_blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interpret with large blocks, as each block costs the same time, whatever its size.

    A test with "configured" in its name keeps the blocks of the table.
    """
    if not INTERPRETED or "configured" in request.node.name:
        return
    find_launch = passes.find_launch
    changes = {
        "resize_weights": {"BLOCK": 2048},
        "resize_first": {"BLOCK": 32, "BLOCK_LINES": 512},
        "resize_second": {"BLOCK": 128, "BLOCK_LINES": 32},
    }

    def find(op: str, *key: Any, **sizes: Any) -> dict[str, int]:
        return find_launch(op, *key, **sizes) | changes[op]

    for target in (passes, weights):
        monkeypatch.setattr(target, "find_launch", find)


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


Crops = tuple[list[np.ndarray], list[Window], list[bool]]


def drawn(seed: int, count: int, side: int, size: int) -> Crops:
    """Return crops of up to side x side pixels, windows of up to size pixels in resized crops that
    may be smaller than them, and flips."""
    draw = np.random.default_rng(seed)
    crops = [picture(number, *draw.integers(1, side + 1, 2)) for number in range(count)]
    sides = draw.integers(size // 2, 2 * size, (count, 2))
    places = draw.integers(-size // 2, size, (count, 2))
    # half of them as in training: the window is the whole
    sides[::2], places[::2] = size, 0
    both = (sides.tolist(), places.tolist())
    windows = [(*resized, *place) for resized, place in zip(*both, strict=True)]
    return crops, windows, (draw.random(count) < 0.5).tolist()


def expected_of(crops: Crops, size: int) -> torch.Tensor:
    """Return what PIL makes of each crop, on the device."""
    images = [by_pil(*arguments, size) for arguments in zip(*crops, strict=True)]
    return torch.from_numpy(np.stack(images)).to(DEVICE)


def equal(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


# crop, window (resized height and width, y and x)
CASES: dict[str, tuple[Shape, Window]] = {
    "smaller": ((97, 131), (24, 24, 0, 0)),
    "larger": ((9, 7), (24, 24, 0, 0)),
    "same": ((24, 24), (24, 24, 0, 0)),
    "one pixel": ((1, 1), (24, 24, 0, 0)),
    "one row": ((1, 90), (24, 24, 0, 0)),
    "one column": ((90, 1), (24, 24, 0, 0)),
    "tall": ((3000, 2), (2900, 24, 1400, 0)),
    "just tall": ((201, 2), (24, 24, 0, 0)),
    "just not tall": ((200, 2), (24, 24, 0, 0)),
    "tall, higher still": ((210, 2), (230, 24, 150, 0)),
    "tall, beyond the edges": ((301, 3), (150, 9, -2, -3)),
    "wide": ((2, 3000), (24, 2900, 0, 1400)),
    "many taps": ((301, 80), (24, 24, 0, 0)),
    "inner window": ((90, 140), (36, 56, 5, 17)),
    "beyond the edges": ((60, 50), (24, 24, -4, 4)),
    "far beyond the edges": ((60, 50), (10, 9, -9, -5)),
    "smaller than its window": ((50, 20), (5, 1, -2, -6)),
}


@pytest.mark.parametrize("run", RUNS)
def test_crops_of_any_shape_equal_pil(run: Any) -> None:
    shapes, windows = zip(*CASES.values(), strict=True)
    crops = [picture(seed, *shape) for seed, shape in enumerate(shapes)]
    flips = [bool(number % 2) for number in range(len(crops))]
    with poisoned_memory():
        out = run(**pack(crops, windows, flips), size=24)
    equal(out, expected_of((crops, list(windows), flips), 24))


@pytest.mark.parametrize("count", [48, pytest.param(256, marks=pytest.mark.slow)])
@pytest.mark.parametrize("run", RUNS)
def test_no_value_of_odd_crops_differs_from_pil_and_the_exact_backend(run: Any, count: int) -> None:
    crops = drawn(0, count, 40, 15)
    out = run(**pack(*crops), size=15)
    assert not (out != expected_of(crops, 15)).sum()
    pytest.importorskip("numba")
    from fastdeit.data.augment.resize.window import resize as exact

    for image, crop, window, flip in zip(out, *crops, strict=True):
        assert not (image.cpu().numpy() != exact(crop, *window, 15, flip)).sum()


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    shape=st.tuples(st.integers(1, 50), st.integers(1, 50)),
    window=st.tuples(
        *(st.integers(5, 50), st.integers(5, 50), st.integers(-60, 60), st.integers(-60, 60))
    ),
    flip=st.booleans(),
    size=st.integers(1, 30),
)
def test_any_crop_and_window_equals_pil(
    shape: Shape, window: Window, flip: bool, size: int
) -> None:
    crops = ([picture(0, *shape)], [window], [flip])
    for run in RUNS:
        equal(run(**pack(*crops), size=size), expected_of(crops, size))


def test_configured_launch_equals_pil(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks along both sides, one of which computes several blocks of lines."""
    monkeypatch.setattr(passes, "MOST_PROGRAMS", 2)
    crops = drawn(1, 2, 40, 40)
    crops[0][0] = picture(0, 70, 50)
    equal(resize_triton(**pack(*crops), size=35), expected_of(crops, 35))


@pytest.mark.slow
def test_crops_at_224_equal_pil() -> None:
    crops = drawn(2, 64, 700, 224)
    out = resize_triton(**pack(*crops), size=224)
    assert not (out != expected_of(crops, 224)).sum()


def test_resize_is_deterministic_and_keeps_its_inputs() -> None:
    inputs = pack(*drawn(3, 5, 30, 12))
    before = {name: tensor.clone() for name, tensor in inputs.items()}
    equal(resize_triton(**inputs, size=12), resize_triton(**inputs, size=12))
    resize_reference(**inputs, size=12)
    assert all(torch.equal(tensor, before[name]) for name, tensor in inputs.items())


def test_comparison_detects_one_level_and_one_pixel() -> None:
    crops = ([picture(0, 30, 30)], [(12, 12, 0, 0)], [False])
    inputs = pack(*crops)
    out = resize_triton(**inputs, size=12)
    equal(out, expected_of(crops, 12))
    shifted = inputs | {"window": torch.tensor([[12, 13, 0, 0]], dtype=torch.int32)}
    assert not torch.equal(resize_triton(**shifted, size=12), out)
    inputs["packed"][3 * (15 * 30 + 15)] ^= 8
    assert not torch.equal(resize_triton(**inputs, size=12), out)


@pytest.mark.parametrize("run", RUNS)
def test_first_byte_of_a_crop_may_be_beyond_32_bits(run: Any) -> None:
    crops = drawn(4, 2, 20, 8)
    inputs = pack(*crops)
    # memory that is never written takes no room
    packed = torch.empty((1 << 31) + len(inputs["packed"]), dtype=torch.uint8, device=DEVICE)
    packed[1 << 31 :] = inputs["packed"]
    inputs |= {"packed": packed, "start": inputs["start"] + (1 << 31)}
    equal(run(**inputs, size=8), expected_of(crops, 8))


@pytest.mark.skipif(not INTERPRETED, reason="watches the interpreter")
def test_kernels_read_only_bytes_of_the_crops(monkeypatch: pytest.MonkeyPatch) -> None:
    crops = [picture(0, *shape) for shape in ((20, 30), (1, 1), (201, 2), (9, 40))]
    inputs = pack(crops, [(10, 10, 0, 0), (14, 14, 2, -3)] * 2, [True, False] * 2)
    allowed = np.zeros(len(inputs["packed"]) + 2000, bool)
    rows = zip(*(inputs[name].tolist() for name in ("start", "stride", "shape")), strict=True)
    for start, stride, (height, width) in rows:
        for row in range(height):
            first = 1000 + start + row * stride
            allowed[first : first + 3 * width] = True
    around = torch.zeros(len(allowed), dtype=torch.uint8)
    around[1000:-1000] = inputs["packed"]
    inputs["packed"] = around[1000:-1000]
    builder = type(interpreter.interpreter_builder)
    load = builder.create_masked_load
    read = np.zeros(len(allowed), bool)

    def watch(self: Any, places: Any, mask: Any, *rest: Any) -> Any:
        offsets = places.data[mask.data].astype(np.int64) - around.data_ptr()
        read[offsets[(offsets >= 0) & (offsets < len(read))]] = True
        return load(self, places, mask, *rest)

    monkeypatch.setattr(builder, "create_masked_load", watch)
    resize_triton(**inputs, size=10)
    assert read.sum() > allowed.sum() / 2 and not (read & ~allowed).any()


@pytest.mark.parametrize("run", RUNS)
def test_resize_accepts_strided_tensors(run: Any) -> None:
    crops = drawn(5, 3, 20, 8)
    inputs = pack(*crops)
    wide = {name: torch.stack((tensor, tensor), -1)[..., 0] for name, tensor in inputs.items()}
    assert not any(tensor.is_contiguous() for tensor in wide.values())
    equal(run(**wide, size=8), expected_of(crops, 8))


def test_resize_passes_opcheck() -> None:
    arguments = (*pack(*drawn(6, 3, 20, 8)).values(), 8)
    torch.library.opcheck(torch.ops.fastdeit.resize.default, arguments)


def test_resize_compiles_without_a_graph_break(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "is_fused", lambda _: True)
    crops = drawn(7, 3, 20, 8)
    compiled = torch.compile(
        lambda *inputs: resize(*inputs).float() / 255, backend="aot_eager", fullgraph=True
    )
    equal(compiled(*pack(*crops).values(), 8), expected_of(crops, 8).float() / 255)


def test_compiled_kernels_round_as_pil_and_read_neighbouring_pixels() -> None:
    """A fused multiply-add rounds once instead of twice: on a GPU pixels would differ from those of
    PIL, which the interpreter cannot show. Threads that read distant bytes would be slow."""
    code = """
from benchmarks.bench_resize import LAUNCHES
from benchmarks.measuring.offline import compiled_only
with compiled_only(90) as found:
    LAUNCHES[0].run()
kernels = {kernel.metadata.name: kernel.asm for kernel, _ in found}
assert len(kernels) == 3, kernels
assert not any("fma.rn" in asm["ptx"] for asm in kernels.values())
weights = kernels["_resize_weights_kernel"]["ptx"]
assert "mul.rn.f64" in weights and "div.rn.f64" in weights
assert ".f32" not in weights
first = kernels["_resize_first_kernel"]["ttgir"]
assert "sizePerThread = [1], threadsPerWarp = [32]" in first
assert "convert_layout" not in first and first.count("#ttg.blocked<") == 1
"""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert not done.returncode, done.stderr


@pytest.mark.gpu
def test_host_waits_for_nothing() -> None:
    crops = drawn(8, 32, 300, 224)
    inputs = pack(*crops)
    resize(**inputs, size=224)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        out = resize(**inputs, size=224)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    equal(out, expected_of(crops, 224))


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
        ({"start": torch.tensor([0, -1])}, "crop 1 must be .* -1 to"),
        ({"start": torch.tensor([0, 16])}, "crop 1 must be .* inside the 27 bytes"),
        ({"stride": torch.tensor([6, 999], dtype=torch.int32)}, "crop 1 must be .* inside"),
        ({"stride": torch.tensor([6, -6], dtype=torch.int32)}, "crop 1 must be .* inside"),
        ({"size": 0}, "size must be at least 1"),
    ],
)
def test_wrong_arguments_are_refused(change: dict[str, Any], message: str) -> None:
    crops = [np.zeros((2, 2, 3), np.uint8)] * 2
    good: dict[str, Any] = pack(crops, [(4, 4, 0, 0)] * 2, [False] * 2) | {"size": 4}
    resize(**good)
    with pytest.raises(ValueError, match=message):
        resize(**good | change)
