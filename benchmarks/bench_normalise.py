"""Time of `kernels/normalise.py` and `mix_kernels/pixels.py` against timm on the same device.

python -m benchmarks.bench_normalise [--out FOLDER]

The input is augmented crops, uint8; a quarter of the images is erased with noise, as in the recipe
`deit`. normalise writes fp16 images; mix_pixels writes bf16 patches for the student, once from the
crops and once from fp16 images that `normalise` has written before. timm's PrefetchLoader
normalises and erases, and its Mixup mixes, in fp32; its time includes the same patches. pct_of_copy
counts the least memory traffic.
"""

from collections.abc import Callable

import torch
from timm.data import Mixup
from timm.data.random_erasing import RandomErasing

from benchmarks.bench_mix import PATCH, make_inputs, patchify
from benchmarks.measuring import harness
from fastdeit.kernels.mix_kernels.pixels import mix_pixels
from fastdeit.kernels.mix_patches import mix_patches, mix_patches_reference, mix_patches_triton
from fastdeit.kernels.normalise import (
    MODES,
    Pixels,
    level_values,
    normalise_reference,
    normalise_triton,
)

SHAPES = {"cuda": [(256, 3, 224, 224), (1024, 3, 224, 224)], "cpu": [(16, 3, 64, 64)]}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLASSES = 1000

Run = Callable[[], torch.Tensor]


def make_pixels(shape: tuple[int, ...], device: torch.device, mode: str = "pixel") -> Pixels:
    """Return random images, of which every fourth has an erased box of a sixth of its pixels."""
    batch, channels, height, width = shape
    torch.manual_seed(0)
    erase = torch.zeros(batch, 4, dtype=torch.int32)
    erase[::4] = torch.tensor([height // 5, width // 7, 2 * height // 5, 3 * width // 7])
    images = torch.randint(256, (batch, height, width, channels), dtype=torch.uint8)
    key = torch.randint(2**62, (batch,))
    levels = level_values(MEAN, STD)
    moved = (tensor.to(device) for tensor in (images, levels, erase, key))
    images, levels, erase, key = moved
    return Pixels(images, levels, erase, mode, key)


def _normalised(name: str, dtype: torch.dtype, channels_last: bool = False) -> harness.Launch:
    def run() -> object:
        images, levels, erase, mode, key = make_pixels((2, 3, 224, 224), torch.device("cpu"))
        options = (MODES.index(mode), dtype, channels_last)
        return normalise_triton(images, levels, erase, key, *options)

    return harness.Launch(name, run)


def _mixed(
    name: str,
    *,
    side: int = 224,
    patch: int = PATCH,
    images: bool = False,
    last: bool = True,
    mode: str = "pixel",
    dtype: torch.dtype = torch.bfloat16,
) -> harness.Launch:
    def run() -> object:
        shape = (2, 3, side, side)
        _, lam, box = make_inputs(shape, torch.device("cpu"))
        pixels = make_pixels(shape, torch.device("cpu"), mode)
        return mix_pixels(pixels, lam, box, patch, dtype, images, last)

    return harness.Launch(name, run)


LAUNCHES = [
    _normalised("normalise to fp16", torch.float16),
    _normalised("normalise to fp32", torch.float32),
    _normalised("normalise to fp32 channels last", torch.float32, channels_last=True),
    _mixed("patches of pixels to bf16"),
    _mixed("patches of pixels to bf16, 384", side=384),
    _mixed("patches of pixels to bf16, const", mode="const"),
    _mixed("patches of pixels to fp32", dtype=torch.float32),
    _mixed("patches of 14 of pixels to bf16", patch=14),
    _mixed("patches and images of pixels to bf16", images=True),
    _mixed("images of pixels to bf16", patch=0, images=True),
    _mixed("images of pixels to bf16 as planes", patch=0, images=True, last=False),
]


def normalisations(pixels: Pixels) -> dict[str, Run]:
    """Return the implementations of normalise, as calls; all must equal the first."""
    runs: dict[str, Run] = {"reference": lambda: normalise_reference(*pixels, torch.float16)}
    if pixels.images.is_cuda:
        images, levels, erase, mode, key = pixels
        options = (MODES.index(mode), torch.float16, False)
        runs["triton"] = lambda: normalise_triton(images, levels, erase, key, *options)
    return runs


def mixtures(pixels: Pixels, lam: torch.Tensor, box: torch.Tensor) -> dict[str, Run]:
    """Return the implementations of mix_pixels, as calls; all must equal the first."""
    out = torch.bfloat16
    runs: dict[str, Run] = {
        "reference": lambda: mix_patches_reference(pixels, lam, box, PATCH, out)[0]
    }
    if pixels.images.is_cuda:
        first = normalisations(pixels)["triton"]
        runs["triton"] = lambda: mix_patches(pixels, lam, box, PATCH, out)[0]
        runs["triton, normalise before"] = lambda: mix_patches_triton(
            first(), lam, box, PATCH, out, False
        )[0]
    return runs


def timm_normalise(pixels: Pixels) -> Run:
    """Return a function that does what timm's PrefetchLoader does to a batch, with the
    RandomErasing of the recipe."""
    images = pixels.images.permute(0, 3, 1, 2).contiguous()
    device = images.device
    mean = torch.tensor(MEAN, device=device).view(1, 3, 1, 1) * 255
    std = torch.tensor(STD, device=device).view(1, 3, 1, 1) * 255
    erasing = RandomErasing(0.25, mode="pixel", max_count=1, device=device.type)
    return lambda: erasing(images.float().sub_(mean).div_(std))


def timm_mix(pixels: Pixels) -> Run:
    prepare = timm_normalise(pixels)
    labels = torch.zeros(len(pixels.images), dtype=torch.int64, device=pixels.images.device)
    theirs = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, num_classes=CLASSES)
    return lambda: patchify(theirs(prepare(), labels)[0].bfloat16())


def bench(
    mode: str, shape: tuple[int, ...], device: torch.device, stamp: harness.Row, copy: float
) -> list[harness.Row]:
    """Compare all except timm with the reference, then return the rows of one shape."""
    pixels = make_pixels(shape, device)
    _, lam, box = make_inputs(shape, device)
    if mode == "normalise":
        runs, theirs = normalisations(pixels), timm_normalise(pixels)
    else:
        runs, theirs = mixtures(pixels, lam, box), timm_mix(pixels)
    expected = runs["reference"]()
    for name, run in runs.items():
        harness.gate(run(), expected, name)
    nbytes = pixels.images.nbytes + expected.nbytes
    rows = []
    for name, run in {**runs, "timm fp32": theirs}.items():
        what = harness.case_columns(mode, "fwd", "x".join(map(str, shape)), "uint8", name)
        found = harness.measure(run, device, images=shape[0], nbytes=nbytes, copy=copy)
        rows.append(stamp | what | found)
    return rows


if __name__ == "__main__":
    cases = {
        name: [(mode, shape) for mode in ("normalise", "mix_pixels") for shape in shapes]
        for name, shapes in SHAPES.items()
    }
    harness.run_benchmark(__doc__, cases, bench)
