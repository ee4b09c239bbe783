"""The command lines of both trainers: one list of deit's flags, and the additions of each."""

import os
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
WRAPPER = ROOT / "benchmarks" / "official" / "run_deit.py"
TEACHER = "regnety_002"
SIZE = 48
"""The side of the images in pixels: up to 32 deit crops differently
(`datasets.build_transform`)."""
BATCH = 32
STUDENT = (
    "--model deit_tiny_distilled_patch16_224 --patch-size 8 --embed-dim 64 --depth 4 --num-heads 2"
).split()
"""The flags of a student with deit's two tokens and two heads; run_deit.py has our flags of its
sizes."""
SHARED = (
    f"--input-size {SIZE} --batch-size {BATCH} --lr 16e-3 --warmup-epochs 1 --drop-path 0.05 "
    f"--distillation-type hard --teacher-model {TEACHER} --num_workers 1"
).split()
"""The flags that are not deit's defaults: these have AdamW, cosine, RandAugment, Mixup, CutMix,
RandomErasing and EMA."""
DEITS = "--device cpu".split()
OURS = f"--recipe deit_paper --mixup-group {BATCH} --teacher-input-size {SIZE}".split()
TEACHERS = (
    f"--model {TEACHER} --input-size {SIZE} --batch-size {BATCH} --distillation-type none "
    "--lr 8e-3 --warmup-epochs 0.5 --drop-path 0 --aa none --color-jitter 0 --reprob 0 "
    "--mixup 0 --cutmix 0 --no-repeated-aug --num-workers 1"
).split()
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}


class Deit(NamedTuple):
    """deit's checkout, and the Python of its environment."""

    checkout: Path
    python: Path


def list_flags(folder: Path, *, seed: int, epochs: int) -> list[str]:
    """Return the flags of both trainers; folder: that of images and teacher."""
    files = ["--data-path", str(folder / "images"), "--teacher-path", str(folder / "teacher.pth")]
    return [*STUDENT, *SHARED, *files, "--seed", str(seed), "--epochs", str(epochs)]


def deit_command(deit: Deit, flags: list[str], output: Path) -> list[str]:
    start = [str(deit.python), "-W", "ignore", str(WRAPPER), str(deit.checkout)]
    return [*start, *flags, *DEITS, "--output_dir", str(output)]


def our_command(flags: list[str], output: Path) -> list[str]:
    return [*_our_script(), *OURS, *flags, "--output_dir", str(output)]


def teacher_command(folder: Path, epochs: int, output: Path) -> list[str]:
    """Return our command that trains the teacher of both, a ConvNet without augmentation."""
    where = ["--data-path", str(folder / "images"), "--output-dir", str(output)]
    return [*_our_script(), *TEACHERS, *where, "--epochs", str(epochs)]


def _our_script() -> list[str]:
    return [sys.executable, str(ROOT / "fastdeit" / "train.py")]


def make_environment() -> dict[str, str]:
    """Return the environment of a run: one thread for each library, no GPU."""
    return dict(os.environ) | ENVIRONMENT
