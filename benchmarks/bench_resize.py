"""Time of `kernels/resize.py` against torch's resize of one crop after the other on the GPU, and
against the exact backend's function and PIL on the CPU.

python -m benchmarks.bench_resize [--out FOLDER]

Every implementation resizes the planned crops of DeiT's RandomResizedCrop. Images have the mean
size of ImageNet's, 375 x 500 pixels, and are in one buffer. torch's function resizes in single
precision, as torchvision's v2 does on a GPU, so its pixels differ from those of PIL. The exact
backend's function and PIL run on one core, on fewer images. pct_of_copy counts the bytes of the
crops and of the result, once. The estimate of `predict` for an H100 is printed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate

from benchmarks.measuring import harness
from fastdeit.kernels.resize import Crops, resize_reference, resize_triton
from fastdeit.plan.plan import Plan
from fastdeit.plan.spec import PlanSpec

SHAPES = {"cuda": [(256, 224), (1024, 224), (256, 384)], "cpu": [(32, 224)]}
STORED = (375, 500)
"""The height and width of every image, the mean of ImageNet."""
ON_ONE_CORE = 32
"""The number of images on one CPU core, and of the reference."""
ONE_BY_ONE = 256
"""The largest batch for torch, which is called crop by crop."""
FIRST_CLOCKS = 55 / 128 / 12
"""The clocks of an SM for one input byte in the first pass: its loop has 55 instructions for 12
inputs, and a clock issues those of 128 threads. Its 13 loads, of 32 threads a clock, take about as
long."""
SECOND_CLOCKS = 52 / 128 / 16
"""The same for the second pass: 52 instructions for 16 inputs."""

Runs = dict[str, Callable[[], torch.Tensor]]


@dataclass(frozen=True)
class Inputs:
    """Images in one buffer, and the arguments of `resize` for it."""

    packed: torch.Tensor
    crops: Crops
    size: int

    def first(self, count: int) -> "Inputs":
        """Return the inputs of the first `count` crops."""
        start, stride, shape, window, flip = (tensor[:count] for tensor in self.crops)
        return Inputs(self.packed, (start, stride, shape, window, flip), self.size)

    def cut(self) -> list[torch.Tensor]:
        """Return the crops, views of uint8 (h, w, 3)."""
        rows = zip(*(tensor.tolist() for tensor in self.crops[:3]), strict=True)
        return [
            self.packed.as_strided((*shape, 3), (stride, 3, 1), start)
            for start, stride, shape in rows
        ]

    def run(self, function: Callable[..., torch.Tensor]) -> torch.Tensor:
        """Call `resize`, its reference or its launcher."""
        return function(self.packed, *self.crops, self.size)


def _launch(side: int, size: int) -> torch.Tensor:
    inputs = pack(torch.zeros(4, side, side, 3, dtype=torch.uint8), [(0, 0, side, side)] * 4, size)
    return inputs.run(resize_triton)


LAUNCHES = [
    harness.Launch("resize 224", lambda: _launch(316, 224), streams=("_resize_second_kernel",)),
    harness.Launch("resize ragged", lambda: _launch(61, 37)),
]


def pack(images: torch.Tensor, boxes: Sequence[Sequence[int]] | np.ndarray, size: int) -> Inputs:
    """Return the inputs for boxes (y, x, height, width) of images, uint8 (B, H, W, 3)."""
    height, width = images.shape[1:3]
    box = torch.from_numpy(np.array(boxes, np.int64))
    start = (torch.arange(len(box)) * height + box[:, 0]) * (3 * width) + 3 * box[:, 1]
    stride = torch.full((len(box),), 3 * width, dtype=torch.int32)
    window = torch.tensor([[size, size, 0, 0]] * len(box), dtype=torch.int32)
    flip = torch.arange(len(box)) % 2 == 1
    return Inputs(images.view(-1), (start, stride, box[:, 2:].int(), window, flip), size)


def make_inputs(batch: int, size: int, device: torch.device) -> Inputs:
    """Return smooth images with noise and their planned crops."""
    height, width = STORED
    coarse = 255 * torch.rand(8, 3, height // 16, width // 16)
    smooth = interpolate(coarse, size=STORED, mode="bicubic").repeat(-(-batch // 8), 1, 1, 1)
    noisy = (smooth[:batch] + 8 * torch.randn(3, *STORED)).clamp(0, 255)
    images = noisy.to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    plan = Plan(PlanSpec(input_size=size), np.tile(STORED, (2 * batch, 1)))
    return pack(images.to(device), plan.draw(0, np.arange(batch)).crop, size)


def bytes_of(inputs: Inputs) -> tuple[int, int]:
    """Return the least bytes that must be read and written, and those that the kernels move."""
    height, width = inputs.crops[2].double().unbind(1)
    least = 3 * (height * width + inputs.size**2)
    taps = sum(4 * (side / inputs.size).clamp(min=1) for side in (height, width))
    between = 2 * (3 * height * inputs.size + 4 * taps * inputs.size)
    return int(least.sum()), int((least + between).sum())


def predict(inputs: Inputs) -> tuple[float, float]:
    """Return the estimated microseconds for a crop on an H100, of its bytes and of its
    instructions; the sum of both is the worst case."""
    height, width = inputs.crops[2].double().unbind(1)
    down, across = (4 * (side / inputs.size).clamp(min=1) for side in (height, width))
    first = FIRST_CLOCKS * 3 * inputs.size * height * across
    second = SECOND_CLOCKS * 3 * inputs.size**2 * down
    moved = bytes_of(inputs)[1] / len(height) / harness.H100_BYTES
    return 1e6 * moved, 1e6 * float((first + second).mean()) / harness.H100_CLOCKS


def describe(inputs: Inputs) -> str:
    """Return one line on the bytes moved and the estimated time."""
    least, moved = bytes_of(inputs)
    parts = "{:.2f} of bytes + {:.2f} of instructions".format(*predict(inputs))
    size = f"{moved / len(inputs.crops[0]) / 1e6:.2f} MB, {moved / least:.2f} times the least"
    return f"a crop at {inputs.size} px: {size}; estimate for an H100: {parts} us"


def by_pil(crops: Sequence[np.ndarray], size: int) -> torch.Tensor:
    """Resize and mirror crops by PIL on one core."""
    out = [Image.fromarray(crop).resize((size, size), Image.Resampling.BICUBIC) for crop in crops]
    turned = Image.Transpose.FLIP_LEFT_RIGHT
    flipped = [image.transpose(turned) if i % 2 else image for i, image in enumerate(out)]
    return torch.from_numpy(np.stack([np.asarray(image) for image in flipped]))


def by_torch(crops: Sequence[torch.Tensor], size: int) -> torch.Tensor:
    """Resize and mirror crops by torch, one after the other, as torchvision's v2 functions do."""
    out = []
    for i, crop in enumerate(crops):
        planes = crop.permute(2, 0, 1).unsqueeze(0).float()
        image = interpolate(planes, size=(size, size), mode="bicubic", antialias=True)
        out.append(image.flip(3) if i % 2 else image)
    return torch.cat(out).round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def by_exact(crops: Sequence[np.ndarray], size: int) -> Callable[[], torch.Tensor] | None:
    """Return the function of --augment-backend exact on one core; None where numba is not
    installed."""
    try:
        from fastdeit.data.augment.resize.window import resize
    except ImportError:
        print("skipped: the exact backend's function (needs numba)")
        return None

    def run() -> torch.Tensor:
        out = [resize(crop, size, size, 0, 0, size, i % 2 == 1) for i, crop in enumerate(crops)]
        return torch.from_numpy(np.stack(out))

    return run


def bench(
    batch: int, size: int, device: torch.device, stamp: harness.Row, copy: float
) -> list[harness.Row]:
    """Compare the pixels of the implementations, then return the rows of one shape."""
    inputs = make_inputs(batch, size, device)
    print(describe(inputs), flush=True)
    first = inputs.first(ON_ONE_CORE)
    few = [np.ascontiguousarray(crop.cpu().numpy()) for crop in first.cut()]
    expected = by_pil(few, size)
    alone: Runs = {
        "reference": lambda: first.run(resize_reference),
        "PIL, one core": lambda: by_pil(few, size),
    }
    if exact := by_exact(few, size):
        alone["exact backend, one core"] = exact
    runs: Runs = {}
    if device.type == "cuda":
        runs["triton"] = lambda: inputs.run(resize_triton)
    for name, run in (alone | runs).items():
        harness.gate(run()[:ON_ONE_CORE].cpu(), expected, name)
    if batch <= ONE_BY_ONE:
        runs["torch, crop by crop"] = lambda: by_torch(inputs.cut(), size)

    def row(
        name: str, run: Callable[[], torch.Tensor], count: int, where: torch.device
    ) -> harness.Row:
        what = harness.case_columns("resize", "fwd", f"{count}x{size}x{size}x3", "uint8", name)
        nbytes = bytes_of(inputs)[0] * count // batch
        return stamp | what | harness.measure(run, where, images=count, nbytes=nbytes, copy=copy)

    rows = [row(name, run, batch, device) for name, run in runs.items()]
    return rows + [row(name, run, len(few), torch.device("cpu")) for name, run in alone.items()]


if __name__ == "__main__":
    torch.set_num_threads(1)
    harness.run_benchmark(__doc__, SHAPES, bench)
