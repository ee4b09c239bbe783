"""Time of `kernels/augment.py` against torchvision's v2 functions on the GPU, and against the exact
backend's operator and PIL on the CPU.

python -m benchmarks.bench_augment [--out FOLDER]

Every implementation applies the planned operations of DeiT's RandAugment (two layers, each with
probability one half) to cropped uint8 images. torchvision's functions are called image by image on
the GPU, as its own RandAugment does; they have no bicubic warp there, so their warp is bilinear,
and the pixels differ from those of PIL. The reference reads the operations on the host, so it is
not compiled. The exact backend's operator and timm on PIL run on one core, on fewer images.
pct_of_copy counts the bytes of the images read and written once. The estimate of `predict` for an
H100 is printed.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from timm.data.auto_augment import LEVEL_TO_ARG, NAME_TO_OP
from torch.nn.functional import interpolate
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as v2

from benchmarks.measuring import harness
from fastdeit.kernels.augment import FILL, OPS, augment_reference, augment_triton, pack_args
from fastdeit.kernels.augment_kernels.ops import STATISTICS
from fastdeit.plan.plan import Plan
from fastdeit.plan.spec import PlanSpec

SHAPES = {"cuda": [(256, 224), (1024, 224), (256, 384)], "cpu": [(32, 64)]}
ON_ONE_CORE = 32
"""The number of images on one CPU core."""
ONE_BY_ONE = 256
"""The largest batch for torchvision, which is called image by image."""
INTEGER_ARGS = ("PosterizeIncreasing", "SolarizeIncreasing", "SolarizeAdd")
LAYER_OPS = PlanSpec().layer_ops
INSTRUCTIONS = {
    "Rotate": 596,
    **dict.fromkeys(("ShearX", "ShearY", "TranslateXRel", "TranslateYRel"), 231),
    "ColorIncreasing": 73,
    "SharpnessIncreasing": 3 * 152,
    **dict.fromkeys(STATISTICS, 628 // 8 + 10),
}
"""The instructions of a thread for a pixel, in the loops of the sm_90 code, by operation; 10 for
the other operations and for a copy."""

Drawn = tuple[np.ndarray, np.ndarray]
Runs = dict[str, Callable[[], torch.Tensor]]


def _launch(side: int) -> torch.Tensor:
    images = torch.zeros(4, side, side, 3, dtype=torch.uint8)
    ops = torch.zeros(4, 2, dtype=torch.int32)
    return augment_triton(images, ops, torch.zeros(4, 2, 2, dtype=torch.float64))


LAUNCHES = [
    harness.Launch("augment 224", lambda: _launch(224), streams=("_augment_kernel",)),
    harness.Launch("augment ragged", lambda: _launch(37)),
]


def make_inputs(batch: int, side: int, device: torch.device) -> tuple[torch.Tensor, Drawn]:
    """Return smooth images with noise, and the planned operations and timm's arguments for them."""
    coarse = 255 * torch.rand(batch, 3, side // 16, side // 16)
    smooth = interpolate(coarse, size=(side, side), mode="bicubic")
    noisy = (smooth + 8 * torch.randn_like(smooth)).clamp(0, 255)
    images = noisy.to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    drawn = Plan(PlanSpec(input_size=side), np.full((2 * batch, 2), side)).draw(0, np.arange(batch))
    return images.to(device), (drawn.ops, drawn.op_args)


def ours(images: torch.Tensor, drawn: Drawn) -> Runs:
    """Return the implementations that must give equal pixels.

    The preparation and the copy of the arguments are not timed, as the loader does them.
    """
    ops, args = map(torch.from_numpy, drawn)
    packed = pack_args(ops, args).to(images.device)
    arguments = (images, ops.to(images.device), packed, FILL, LAYER_OPS)
    runs: Runs = {"reference": lambda: augment_reference(*arguments)}
    if images.is_cuda:
        runs["triton"] = lambda: augment_triton(*arguments)
    return runs


def predict(drawn: Drawn, side: int) -> tuple[float, float]:
    """Return the estimated microseconds for an image on an H100, of its bytes and of its
    instructions; the sum of both is the worst case."""
    names = [OPS[op] if op >= 0 else "" for op in drawn[0].ravel()]
    passes = 2 * len(names) + sum(name in STATISTICS for name in names)
    count = sum(INSTRUCTIONS.get(name, 10) for name in names)
    pixels = 1e6 * side**2 / len(drawn[0])
    return 3 * pixels * passes / harness.H100_BYTES, pixels * count / 128 / harness.H100_CLOCKS


def by_timm(images: np.ndarray, drawn: Drawn) -> torch.Tensor:
    """Apply PIL's operations image by image on one core."""
    out = []
    for image, ops, args in zip(images, *drawn, strict=True):
        pil = Image.fromarray(image)
        for op, arg in zip(ops, args, strict=True):
            if op >= 0:
                pil = _timm_op(pil, OPS[op], float(arg))
        out.append(np.asarray(pil))
    return torch.from_numpy(np.stack(out))


def _timm_op(image: Image.Image, name: str, arg: float) -> Image.Image:
    args: list[float] = []
    if LEVEL_TO_ARG[name] is not None:
        args = [int(arg) if name in INTEGER_ARGS else arg]
    return NAME_TO_OP[name](image, *args, fillcolor=FILL, resample=Image.Resampling.BICUBIC)


def _v2_affine(
    x: torch.Tensor, shear: tuple[float, float], share: tuple[float, float]
) -> torch.Tensor:
    degrees = [math.degrees(math.atan(tangent)) for tangent in shear]
    pixels = [-round(x.shape[2] * share[0]), -round(x.shape[1] * share[1])]
    fill = [float(value) for value in FILL]
    return v2.affine(x, 0.0, pixels, 1.0, degrees, InterpolationMode.BILINEAR, fill, [0.0, 0.0])


V2_OPS: dict[str, Callable[[torch.Tensor, float], torch.Tensor]] = {
    "AutoContrast": lambda x, a: v2.autocontrast(x),
    "Equalize": lambda x, a: v2.equalize(x),
    "Invert": lambda x, a: v2.invert(x),
    "Rotate": lambda x, a: v2.rotate(x, a, InterpolationMode.BILINEAR, fill=list(map(float, FILL))),
    "PosterizeIncreasing": lambda x, a: v2.posterize(x, int(a)),
    "SolarizeIncreasing": lambda x, a: v2.solarize(x, a),
    # torchvision has none
    "SolarizeAdd": lambda x, a: torch.where(x < 128, x + int(a), x),
    "ColorIncreasing": lambda x, a: v2.adjust_saturation(x, a),
    "ContrastIncreasing": lambda x, a: v2.adjust_contrast(x, a),
    "BrightnessIncreasing": lambda x, a: v2.adjust_brightness(x, a),
    "SharpnessIncreasing": lambda x, a: v2.adjust_sharpness(x, a),
    "ShearX": lambda x, a: _v2_affine(x, (-a, 0.0), (0.0, 0.0)),
    "ShearY": lambda x, a: _v2_affine(x, (0.0, -a), (0.0, 0.0)),
    "TranslateXRel": lambda x, a: _v2_affine(x, (0.0, 0.0), (a, 0.0)),
    "TranslateYRel": lambda x, a: _v2_affine(x, (0.0, 0.0), (0.0, a)),
}


def by_torchvision(images: torch.Tensor, drawn: Drawn) -> torch.Tensor:
    """Apply torchvision's operations image by image on the device of the images."""
    out = list(images.permute(0, 3, 1, 2).contiguous())
    for i, (ops, args) in enumerate(zip(*(array.tolist() for array in drawn), strict=True)):
        for op, arg in zip(ops, args, strict=True):
            if op >= 0:
                out[i] = V2_OPS[OPS[op]](out[i], arg)
    return torch.stack(out).permute(0, 2, 3, 1)


def exact_operator(images: np.ndarray, drawn: Drawn) -> Callable[[], torch.Tensor] | None:
    """Return the operations of --augment-backend exact on one core, on channels-first images.

    Returns None where numba is not installed.
    """
    try:
        from fastdeit.data.augment.sample import operate
    except ImportError:
        print("skipped: the exact operator (needs numba)")
        return None
    planes = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    args = pack_args(*map(torch.from_numpy, drawn)).flatten(1).numpy()

    def run() -> torch.Tensor:
        out = planes.copy()
        for image, ops, values in zip(out, drawn[0], args, strict=True):
            operate(image, ops, values, np.array(FILL, np.int32))
        return torch.from_numpy(out).permute(0, 2, 3, 1)

    return run


def bench(
    batch: int, side: int, device: torch.device, stamp: harness.Row, copy: float
) -> list[harness.Row]:
    """Compare the pixels of the implementations, then return the rows of one shape."""
    images, drawn = make_inputs(batch, side, device)
    few = images[:ON_ONE_CORE].cpu().numpy()
    first = (drawn[0][:ON_ONE_CORE], drawn[1][:ON_ONE_CORE])
    parts = "{:.2f} of bytes + {:.2f} of instructions".format(*predict(drawn, side))
    print(f"an image at {side} px, estimate for an H100: {parts} us", flush=True)
    runs = ours(images, drawn)
    expected = runs["reference"]()
    harness.gate(expected[:ON_ONE_CORE].cpu(), by_timm(few, first), "the reference against PIL")
    for name, run in runs.items():
        harness.gate(run(), expected, name)
    if batch <= ONE_BY_ONE:
        runs["torchvision v2"] = lambda: by_torchvision(images, drawn)
    alone: Runs = {"timm on PIL, one core": lambda: by_timm(few, first)}
    if exact := exact_operator(few, first):
        harness.gate(exact(), expected[:ON_ONE_CORE].cpu(), "the exact operator")
        alone["exact operator, one core"] = exact

    def row(
        name: str, run: Callable[[], torch.Tensor], count: int, where: torch.device
    ) -> harness.Row:
        shape = f"{count}x{side}x{side}x3"
        what = harness.case_columns("augment", "fwd", shape, "uint8", name)
        nbytes = 2 * count * side * side * 3
        return stamp | what | harness.measure(run, where, images=count, nbytes=nbytes, copy=copy)

    cpu = torch.device("cpu")
    rows = [row(name, run, batch, device) for name, run in runs.items()]
    return rows + [row(name, run, len(few), cpu) for name, run in alone.items()]


if __name__ == "__main__":
    torch.set_num_threads(1)
    harness.run_benchmark(__doc__, SHAPES, bench)
