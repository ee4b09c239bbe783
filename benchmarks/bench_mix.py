"""Time of `kernels/mix.py` and `mix_patches.py` against torch.compile, timm's Mixup and
torchvision's v2.

python -m benchmarks.bench_mix [--out FOLDER]

The input is fp16, as from the data pipeline; the output is bf16, the dtype of the model: images
(mix), patches for the student (mix_patches), or both, with the images channels last for a teacher
(mix_both). timm and torchvision mix in fp32, as their users do after normalising; their time
includes the cast to bf16, the same patches, and the soft target, which is small. One half of our
pairs uses Mixup, the other CutMix; theirs use one of the two for the whole batch. pct_of_copy
counts the least memory traffic.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from timm.data import Mixup
from torchvision.transforms import v2

from benchmarks.measuring import harness
from fastdeit.kernels.mix import mix_reference, mix_triton
from fastdeit.kernels.mix_patches import mix_patches_reference, mix_patches_triton

SHAPES = {"cuda": [(256, 3, 224, 224), (1024, 3, 224, 224)], "cpu": [(16, 3, 64, 64)]}
CLASSES = 1000
PATCH = 16
MODES = {"mix": 1, "mix_patches": 1, "mix_both": 2}
"""The number of copies of the images that a mode writes."""

Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
Run = Callable[[], tuple[torch.Tensor, ...]]


def make_inputs(
    shape: tuple[int, ...], device: torch.device, dtype: torch.dtype = torch.float16
) -> Inputs:
    """Return random images of this shape, lam and boxes; every second pair uses CutMix."""
    batch, _, height, width = shape
    images = torch.randn(shape, dtype=dtype, device=device)
    lam = torch.rand(batch // 2).repeat_interleave(2)
    boxes = [[height // 4, width // 4, height - 3, width - 5], [0, 0, 0, 0]]
    two_pairs = torch.tensor(boxes, dtype=torch.int32).repeat_interleave(2, 0)
    box = two_pairs.repeat((batch + 3) // 4, 1)[:batch]
    return images, lam.to(device), box.to(device)


def _small(
    dtype: torch.dtype = torch.float16,
    side: int = 224,
    layout: torch.memory_format = torch.contiguous_format,
) -> Inputs:
    images, lam, box = make_inputs((2, 3, side, side), torch.device("cpu"), dtype)
    return images.contiguous(memory_format=layout), lam, box


def _patches(
    name: str, *, streams: bool, patch: int = PATCH, both: bool = False, **inputs: object
) -> harness.Launch:
    def run() -> object:
        images, lam, box = _small(**inputs)  # type: ignore[arg-type]
        return mix_patches_triton(images, lam, box, patch, torch.bfloat16, both)

    return harness.Launch(name, run, streams=("_mix_patches_fwd_kernel",) if streams else ())


def _images(name: str, dtype: torch.dtype, channels_last: bool = False) -> harness.Launch:
    def run() -> object:
        return mix_triton(*_small(dtype), torch.bfloat16, channels_last)

    return harness.Launch(name, run, streams=() if channels_last else ("_mix_fwd_kernel",))


LAUNCHES = [
    _images("mix fp16 to bf16", torch.float16),
    _images("mix fp32 to bf16", torch.float32),
    _images("mix fp16 to bf16 channels last", torch.float16, channels_last=True),
    _patches("patches fp16 to bf16", streams=True),
    _patches("patches fp16 to bf16, 384", streams=True, side=384),
    _patches("patches fp32 to bf16", streams=True, dtype=torch.float32),
    _patches("patches and images fp16 to bf16", streams=True, both=True),
    _patches("patches and images fp32 to bf16", streams=True, both=True, dtype=torch.float32),
    _patches("patches of 8 fp16 to bf16", streams=True, patch=8),
    _patches("patches of 14 and images fp16 to bf16", streams=False, patch=14, both=True),
    _patches(
        "patches and images from channels last",
        streams=False,
        both=True,
        layout=torch.channels_last,
    ),
]


def patchify(images: torch.Tensor) -> torch.Tensor:
    """Return patches of mixed images, as users of the peers compute them, (B, N, 3·P·P)."""
    return F.pixel_unshuffle(images, PATCH).flatten(2).transpose(1, 2).contiguous()


def implementations(inputs: Inputs, mode: str) -> dict[str, Run]:
    """Return the implementations as calls without arguments; all must equal the first."""
    out = torch.bfloat16
    compiled = torch.compile(mix_reference)
    compiled_patches = torch.compile(mix_patches_reference)
    if mode == "mix":
        runs: dict[str, Run] = {
            "reference": lambda: (mix_reference(*inputs, out),),
            "torch.compile": lambda: (compiled(*inputs, out),),
        }
        if inputs[0].is_cuda:
            runs["triton"] = lambda: (mix_triton(*inputs, out, False),)
        return runs
    both = mode == "mix_both"

    def given(patches: torch.Tensor, images: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        return (patches,) if images is None else (patches, images)

    runs = {
        "reference": lambda: given(*mix_patches_reference(*inputs, PATCH, out, both)),
        "torch.compile": lambda: given(*compiled_patches(*inputs, PATCH, out, both)),
    }
    if inputs[0].is_cuda:
        runs["triton"] = lambda: mix_patches_triton(*inputs, PATCH, out, both)[: 1 + both]
    return runs


def peers(images: torch.Tensor, mode: str) -> dict[str, Run]:
    labels = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    theirs = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, num_classes=CLASSES)
    v2_mix = v2.RandomChoice(
        [v2.MixUp(alpha=0.8, num_classes=CLASSES), v2.CutMix(alpha=1.0, num_classes=CLASSES)]
    )
    wide = images.float()

    def finish(mixed: torch.Tensor) -> tuple[torch.Tensor, ...]:
        mixed = mixed.bfloat16()
        if mode == "mix":
            return (mixed,)
        patches = patchify(mixed)
        if mode == "mix_patches":
            return (patches,)
        return patches, mixed.contiguous(memory_format=torch.channels_last)

    return {
        "timm Mixup fp32": lambda: finish(theirs(wide, labels)[0]),
        "torchvision v2 fp32": lambda: finish(v2_mix(wide, labels)[0]),
    }


def bench(
    mode: str, shape: tuple[int, ...], device: torch.device, stamp: harness.Row, copy: float
) -> list[harness.Row]:
    """Compare all except the peers with the reference, then return the rows of one shape."""
    inputs = make_inputs(shape, device)
    runs = implementations(inputs, mode)
    expected = runs["reference"]()
    for name, run in runs.items():
        for actual, wanted in zip(run(), expected, strict=True):
            harness.gate(actual, wanted, name)
    nbytes = inputs[0].nbytes + MODES[mode] * expected[0].nbytes
    rows = []
    for name, run in {**runs, **peers(inputs[0], mode)}.items():
        what = harness.case_columns(mode, "fwd", "x".join(map(str, shape)), "fp16-bf16", name)
        found = harness.measure(run, device, images=shape[0], nbytes=nbytes, copy=copy)
        rows.append(stamp | what | found)
    return rows


if __name__ == "__main__":
    cases = {
        name: [(mode, shape) for mode in MODES for shape in shapes]
        for name, shapes in SHAPES.items()
    }
    harness.run_benchmark(__doc__, cases, bench)
