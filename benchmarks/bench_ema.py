"""Time of an EMA update: one multi-tensor call over flat partitions, against timm's ModelEmaV3 and
a loop over parameters.

python -m benchmarks.bench_ema [--out FOLDER]

fp32 weights of a DeiT, on one device. Ours is `Ema` of fastdeit/training/optim/ema.py on two flat
tensors, as in DeepSpeed: one launch. pct_of_copy counts 12 bytes a parameter: weight and EMA read,
EMA written.
"""

from collections.abc import Callable

import torch
from timm.utils import ModelEmaV3

from benchmarks.measuring import harness
from fastdeit.models.student import Student, build_student
from fastdeit.training.optim.ema import Ema

MODELS = {"cuda": ("tiny", "small", "base"), "cpu": ("tiny",)}
DECAY = 0.99996


def make_student(name: str, device: torch.device) -> Student:
    return build_student(f"deit_{name}_distilled_patch16_224", num_classes=1000).to(device)


def flat(student: Student) -> list[torch.Tensor]:
    """Return two flat tensors, of the parameters with and without weight decay."""
    parameters = [parameter.detach() for parameter in student.parameters()]
    decayed = [parameter.flatten() for parameter in parameters if parameter.ndim > 1]
    not_decayed = [parameter.flatten() for parameter in parameters if parameter.ndim <= 1]
    return [torch.cat(decayed), torch.cat(not_decayed)]


def loop(ema_weights: list[torch.Tensor], weights: list[torch.Tensor]) -> None:
    for ema, weight in zip(ema_weights, weights, strict=True):
        ema.mul_(DECAY).add_(weight, alpha=1 - DECAY)


def implementations(student: Student) -> dict[str, Callable[[], object]]:
    """Return the implementations of an update as calls without arguments."""
    flats = flat(student)
    weights = [parameter.detach() for parameter in student.parameters()]
    ours = Ema(flats, {}, DECAY)
    ours.set_rate(0)
    applied = flats[0].new_zeros(())
    ema_weights = [weight.clone() for weight in weights]
    timm = ModelEmaV3(student, decay=DECAY, foreach=False)
    timm_foreach = ModelEmaV3(student, decay=DECAY, foreach=True)
    return {
        "loop": lambda: loop(ema_weights, weights),
        "timm ModelEmaV3": lambda: timm.update(student),
        "timm ModelEmaV3 foreach": lambda: timm_foreach.update(student),
        "ours": lambda: ours.update(flats, {}, applied),
    }


def check(student: Student) -> None:
    """Compare one update by our implementation with the formula."""
    flats = flat(student)
    ours = Ema(flats, {}, DECAY)
    moved = [tensor + 1 for tensor in flats]
    ours.set_rate(0)
    ours.update(moved, {}, flats[0].new_zeros(()))
    for ema, before, after in zip(ours.flats, flats, moved, strict=True):
        harness.gate(ema, before * DECAY + after * (1 - DECAY), "ours")


def main() -> None:
    parser = harness.make_parser(__doc__)
    harness.add_out(parser)
    out = parser.parse_args().out
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    stamp = harness.environment(device)
    copy = harness.copy_gbps(device)
    rows = []
    for name in MODELS[device.type]:
        student = make_student(name, device)
        check(student)
        nbytes = 12 * sum(parameter.numel() for parameter in student.parameters())
        for impl, run in implementations(student).items():
            what = harness.case_columns("ema", "step", name, "fp32", impl)
            measured = harness.measure(run, device, images=1, nbytes=nbytes, copy=copy)
            rows.append(stamp | what | measured | {"images_per_s": ""})
    print(f"copy {copy:.0f} GB/s; rows in {harness.append(rows, device, out)}")
    harness.show(rows)


if __name__ == "__main__":
    main()
