"""`kernels/augment.py` against torchvision's v2 functions on the GPU, the compiled operator and PIL
on the CPU.

python -m benchmarks.bench_augment [--out FOLDER]

Every implementation applies what the plan draws for DeiT's RandAugment (two layers, each with
probability one half) to finished crops, uint8. torchvision's functions are called image by image on
the GPU, as its own RandAugment does; there they have no bicubic warp, so theirs is bilinear, and
the pixels are not PIL's. The reference asks the host which operations there are, so it is not
compiled. The exact backend's operator and timm on PIL run on one core, on as many images as one CPU
copes with. All figures count the bytes of the images once in and once out.
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

from benchmarks import harness
from fastdeit.kernels.augment import FILL, OPS, augment_reference, augment_triton, pack_args
from fastdeit.plan.plan import Plan
from fastdeit.plan.spec import PlanSpec

SHAPES = {"cuda": [(256, 224), (1024, 224), (256, 384)], "cpu": [(32, 64)]}
ON_ONE_CORE, ONE_BY_ONE = 32, 256
WHOLE = ("PosterizeIncreasing", "SolarizeIncreasing", "SolarizeAdd")
LAYER_OPS = PlanSpec().layer_ops

Drawn = tuple[np.ndarray, np.ndarray]
Runs = dict[str, Callable[[], torch.Tensor]]


def _nothing(side: int) -> torch.Tensor:
    images, ops = (
        torch.zeros(4, side, side, 3, dtype=torch.uint8),
        torch.zeros(4, 2, dtype=torch.int32),
    )
    return augment_triton(images, ops, torch.zeros(4, 2, 2, dtype=torch.float64))


LAUNCHES = [
    harness.Launch("augment 224", lambda: _nothing(224), streams=("_augment_kernel",)),
    harness.Launch("augment ragged", lambda: _nothing(37)),
]


def make_inputs(batch: int, side: int, device: torch.device) -> tuple[torch.Tensor, Drawn]:
    """Smooth pictures with noise on top, and the plan's operations and timm's arguments for them."""
    smooth = interpolate(
        255 * torch.rand(batch, 3, side // 16, side // 16), size=(side, side), mode="bicubic"
    )
    images = (
        (smooth + 8 * torch.randn_like(smooth))
        .clamp(0, 255)
        .to(torch.uint8)
        .permute(0, 2, 3, 1)
        .contiguous()
    )
    drawn = Plan(PlanSpec(input_size=side), np.full((2 * batch, 2), side)).draw(0, np.arange(batch))
    return images.to(device), (drawn.ops, drawn.op_args)


def ours(images: torch.Tensor, drawn: Drawn) -> Runs:
    """Those that must give the same pixels; packing and copying the arguments is the loader's work."""
    ops, args = map(torch.from_numpy, drawn)
    arguments = (
        images,
        ops.to(images.device),
        pack_args(ops, args).to(images.device),
        FILL,
        LAYER_OPS,
    )
    runs: Runs = {"reference": lambda: augment_reference(*arguments)}
    if images.is_cuda:
        runs["triton"] = lambda: augment_triton(*arguments)
    return runs


def by_timm(images: np.ndarray, drawn: Drawn) -> torch.Tensor:
    """PIL's operations, image by image on one core."""
    out = []
    for image, ops, args in zip(images, *drawn, strict=True):
        pil = Image.fromarray(image)
        for op, arg in zip(ops, args, strict=True):
            if op >= 0:
                name = OPS[op]
                given = (
                    []
                    if LEVEL_TO_ARG[name] is None
                    else [int(arg) if name in WHOLE else float(arg)]
                )
                pil = NAME_TO_OP[name](
                    pil, *given, fillcolor=FILL, resample=Image.Resampling.BICUBIC
                )
        out.append(np.asarray(pil))
    return torch.from_numpy(np.stack(out))


def _v2_affine(
    x: torch.Tensor, shear: tuple[float, float], share: tuple[float, float]
) -> torch.Tensor:
    degrees = [math.degrees(math.atan(tangent)) for tangent in shear]
    pixels = [-round(x.shape[2] * share[0]), -round(x.shape[1] * share[1])]
    return v2.affine(
        x, 0.0, pixels, 1.0, degrees, InterpolationMode.BILINEAR, list(map(float, FILL)), [0.0, 0.0]
    )


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
    """Image by image on the images' device."""
    out = list(images.permute(0, 3, 1, 2).contiguous())
    for i, (ops, args) in enumerate(zip(*(array.tolist() for array in drawn), strict=True)):
        for op, arg in zip(ops, args, strict=True):
            if op >= 0:
                out[i] = V2_OPS[OPS[op]](out[i], arg)
    return torch.stack(out).permute(0, 2, 3, 1)


def exact_operator(images: np.ndarray, drawn: Drawn) -> Callable[[], torch.Tensor] | None:
    """The operations of --augment-backend exact on one core, on planes; None where numba is not
    installed."""
    try:
        from fastdeit.data.augment.sample import operate
    except ImportError:
        print("left out: the exact operator (needs numba)")
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
    """The rows of one shape, those of the same pixels gated first."""
    images, drawn = make_inputs(batch, side, device)
    few, first = (
        images[:ON_ONE_CORE].cpu().numpy(),
        (drawn[0][:ON_ONE_CORE], drawn[1][:ON_ONE_CORE]),
    )
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
        what: harness.Row = {
            "bench": "augment",
            "mode": "fwd",
            "shape": f"{count}x{side}x{side}x3",
            "dtype": "uint8",
        }
        figures = harness.measure(
            run, where, images=count, nbytes=2 * count * side * side * 3, copy=copy
        )
        return {**stamp, **what, "impl": name, **figures}

    cpu = torch.device("cpu")
    rows = [row(name, run, batch, device) for name, run in runs.items()]
    return rows + [row(name, run, len(few), cpu) for name, run in alone.items()]


if __name__ == "__main__":
    torch.set_num_threads(1)
    harness.run_benchmark(__doc__, SHAPES, bench)
