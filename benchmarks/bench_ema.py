"""The average of the weights: one multi-tensor call over flat partitions against timm's ModelEmaV3
and a loop over parameters.

python -m benchmarks.bench_ema [--out FOLDER]

fp32 weights of a DeiT, on one device. Ours is `Ema` of fastdeit/training/optim.py on two flat
tensors, as DeepSpeed holds them: one launch. The floor is 12 bytes a parameter: both read, one
written.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from timm.utils import ModelEmaV3

from benchmarks import harness
from fastdeit.models.student import Student, build_student
from fastdeit.training.optim import Ema

MODELS = {"cuda": ("tiny", "small", "base"), "cpu": ("tiny",)}
DECAY = 0.99996


def make_student(name: str, device: torch.device) -> Student:
    torch.manual_seed(0)
    return build_student(f"deit_{name}_distilled_patch16_224", num_classes=1000).to(device)


def flat(student: Student) -> list[torch.Tensor]:
    """Two groups, decayed and not, each one tensor."""
    groups = [
        [p.detach() for p in student.parameters() if (p.ndim > 1) == decayed]
        for decayed in (True, False)
    ]
    return [torch.cat([parameter.flatten() for parameter in group]) for group in groups]


def loop(averages: list[torch.Tensor], weights: list[torch.Tensor]) -> None:
    for average, weight in zip(averages, weights, strict=True):
        average.mul_(DECAY).add_(weight, alpha=1 - DECAY)


def implementations(student: Student) -> dict[str, Callable[[], object]]:
    """Each way to update an average, as a call without arguments; every call goes on from the one
    before."""
    flats, weights = flat(student), [parameter.detach() for parameter in student.parameters()]
    ours, averages = Ema(flats, {}, DECAY), [weight.clone() for weight in weights]
    theirs = {
        foreach: ModelEmaV3(student, decay=DECAY, foreach=foreach) for foreach in (True, False)
    }
    return {
        "loop": lambda: loop(averages, weights),
        "timm ModelEmaV3": lambda: theirs[False].update(student),
        "timm ModelEmaV3 foreach": lambda: theirs[True].update(student),
        "ours": lambda: ours.update(flats, {}),
    }


def check(student: Student) -> None:
    """One update of another set of weights must move the average by the same amount."""
    flats = flat(student)
    ours = Ema(flats, {}, DECAY)
    moved = [tensor + 1 for tensor in flats]
    ours.update(moved, {})
    for average, before, after in zip(ours.flats, flats, moved, strict=True):
        harness.gate(average, before * DECAY + after * (1 - DECAY), "ours")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=harness.RESULTS, help="folder of the results")
    out = parser.parse_args().out
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    stamp, copy, rows = harness.environment(device), harness.copy_gbps(device), []
    for name in MODELS[device.type]:
        student = make_student(name, device)
        check(student)
        nbytes = 12 * sum(parameter.numel() for parameter in student.parameters())
        what: harness.Row = {"bench": "ema", "mode": "step", "shape": name, "dtype": "fp32"}
        for impl, run in implementations(student).items():
            measured = harness.measure(run, device, images=1, nbytes=nbytes, copy=copy)
            rows.append({**stamp, **what, "impl": impl, **measured, "images_per_s": ""})
    print(f"copy {copy:.0f} GB/s; rows in {harness.append(rows, device, out)}")
    harness.show(rows)


if __name__ == "__main__":
    main()
