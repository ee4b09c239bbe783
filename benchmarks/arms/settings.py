"""The arms of the ablation, as flags of `fastdeit train`.

The base is that of the paper: everything on, no distillation (arXiv 2012.12877, table 8). Each arm
changes only the setting that it names.
"""

from collections.abc import Sequence
from pathlib import Path

from fastdeit.config.changes import list_values
from fastdeit.config.cli import parse_config
from fastdeit.config.schema import Config

NANO = (
    "--recipe fashion_mnist --patch-size 7 --embed-dim 64 --depth 4 --num-heads 2 --drop-path 0.1 "
    "--aa rand-m9-mstd0.5-inc1 --reprob 0.25 --mixup 0.8 --cutmix 1.0 --repeated-aug "
    "--batch-size 128 --epochs 3 --lr 2e-3 --warmup-epochs 0.5 --model-ema-decay 0.99 "
    "--eval-epochs 1"
).split()
"""The base if no flag names a recipe: DeiT-nano on Fashion-MNIST with the whole augmentation."""
TEACHER = "--recipe fashion_mnist_teacher".split()
ARMS = {
    "base": "",
    "token": "--distillation-type hard --model {distilled}",
    "hard": "--distillation-type hard",
    "soft": "--distillation-type soft",
    "no RandAugment": "--aa none",
    "no Mixup": "--mixup 0",
    "no CutMix": "--cutmix 0",
    "no Mixup, no CutMix": "--mixup 0 --cutmix 0",
    "no erasing": "--reprob 0",
    "no DropPath": "--drop-path 0",
    "no repeats": "--no-repeated-aug",
}
"""The flags of each arm beside those of the base, in the order of a seed's runs."""
CACHED = ("token", "hard", "soft")
"""The arms with a teacher, whose samples are those of the base: one cache of a seed is enough."""


def is_nano(flags: Sequence[str]) -> bool:
    """Return True if the base is `NANO`, as the flags name no other."""
    return not any(flag.startswith(("--recipe", "--config")) for flag in flags)


def list_flags(arm: str, flags: Sequence[str]) -> list[str]:
    """Return the flags of an arm's run, without its seed, teacher and folder.

    flags: those of the user, for all arms. --color-jitter is off, as it would be used in place of
    RandAugment.
    """
    common = [*(NANO if is_nano(flags) else []), *flags]
    plain = parse_config(common, "ablation")[0].model.model.replace("_distilled", "")
    names = {"plain": plain, "distilled": plain.replace("_patch", "_distilled_patch")}
    form = f"--model {{plain}} --distillation-type none --color-jitter 0 {ARMS[arm]}"
    return [*common, *(word.format(**names) for word in form.split())]


def find_config(arm: str, flags: Sequence[str]) -> Config:
    """Return the settings of an arm's run."""
    return parse_config(list_flags(arm, flags), "ablation")[0]


def list_changes(config: Config, base: Config) -> str:
    """Return the settings in which a run differs from the base, such as `mixup=0.0`, separated by
    `; `, except those that every run has: its folder, seed, teacher and cache."""
    before = list_values(base)
    own = ("output_dir", "seed", "cache", "teacher_model", "teacher_path")
    found = [
        f"{name}={value}"
        for name, value in list_values(config).items()
        if value != before[name] and name not in own
    ]
    return "; ".join(found)


def name_run(folder: Path, arm: str, seed: int) -> Path:
    """Return the folder of an arm's run."""
    return folder / f"{arm.replace(',', '').replace(' ', '_').lower()}-{seed}"
