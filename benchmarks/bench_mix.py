"""`kernels/mix.py` against what a user would otherwise call: torch.compile, timm's Mixup, torchvision's v2.

python -m benchmarks.bench_mix [--out FOLDER]

Images come from the pipeline as fp16 and leave in bf16, the model's dtype. timm and torchvision mix in fp32, as their
users do after normalising, and are timed with the cast to bf16 that the model needs; they also make the soft target,
which is small. One half of our pairs is Mixup, the other CutMix; theirs draw one of the two for the whole batch.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from timm.data import Mixup
from torchvision.transforms import v2

from benchmarks import harness
from fastdeit.kernels.mix import mix_reference, mix_triton

SHAPES = {"cuda": [(256, 3, 224, 224), (1024, 3, 224, 224)], "cpu": [(16, 3, 64, 64)]}
CLASSES = 1000

LAUNCHES = [
    harness.Launch("mix fp16 to bf16", lambda: mix_triton(*make_inputs((2, 3, 224, 224), torch.device("cpu")), torch.bfloat16)),
]

Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def make_inputs(shape: tuple[int, ...], device: torch.device) -> Inputs:
    batch, _, height, width = shape
    images = torch.randn(shape, dtype=torch.float16, device=device)
    lam = torch.rand(batch // 2).repeat_interleave(2)
    cut = torch.tensor([[height // 4, width // 4, height - 3, width - 5], [0, 0, 0, 0]], dtype=torch.int32)
    return images, lam.to(device), cut.repeat_interleave(2, 0).repeat((batch + 3) // 4, 1)[:batch].to(device)


def implementations(inputs: Inputs) -> dict[str, Callable[[], torch.Tensor]]:
    """Each way to mix, as a call without arguments; those that must equal the reference come first."""
    arguments = (*inputs, torch.bfloat16)
    compiled = torch.compile(mix_reference)
    runs: dict[str, Callable[[], torch.Tensor]] = {
        "reference": lambda: mix_reference(*arguments),
        "torch.compile": lambda: compiled(*arguments),
    }
    if inputs[0].is_cuda:
        runs["triton"] = lambda: mix_triton(*arguments)
    return runs


def peers(images: torch.Tensor) -> dict[str, Callable[[], torch.Tensor]]:
    labels = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    theirs = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, num_classes=CLASSES)
    v2_mix = v2.RandomChoice([v2.MixUp(alpha=0.8, num_classes=CLASSES), v2.CutMix(alpha=1.0, num_classes=CLASSES)])
    wide = images.float()
    return {
        "timm Mixup": lambda: theirs(wide, labels)[0].bfloat16(),
        "torchvision v2": lambda: v2_mix(wide, labels)[0].bfloat16(),
    }


def bench(shape: tuple[int, ...], device: torch.device, stamp: harness.Row, copy: float) -> list[harness.Row]:
    """The rows of one shape, the reference's equals gated first."""
    inputs = make_inputs(shape, device)
    runs = implementations(inputs)
    expected = runs["reference"]()
    for name, run in runs.items():
        harness.gate(run(), expected, name)
    nbytes = inputs[0].nbytes + expected.nbytes
    what: harness.Row = {"bench": "mix", "mode": "fwd", "shape": "x".join(map(str, shape)), "dtype": "fp16-bf16"}
    return [
        {**stamp, **what, "impl": name, **harness.measure(run, device, images=shape[0], nbytes=nbytes, copy=copy)}
        for name, run in {**runs, **peers(inputs[0])}.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=harness.RESULTS, help="folder of the results")
    out = parser.parse_args().out
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    stamp, copy = harness.environment(device), harness.copy_gbps(device)
    rows = [row for shape in SHAPES[device.type] for row in bench(shape, device, stamp, copy)]
    print(f"copy {copy:.0f} GB/s; rows in {harness.append(rows, device, out)}")
    harness.show(rows)


if __name__ == "__main__":
    main()
