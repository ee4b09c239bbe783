"""Whole runs on one device under DeepSpeed's launcher: the recipes, stop and resume, DeiT-S end to
end.

python -m benchmarks.bench_runs NAME [--folder FOLDER] [--out FOLDER]

A name is a sequence of starts: the same command again after a stop, or with another ZeRO stage.
Each start appends a row to runs.csv. It must exit with 0, resume where the one before stopped, and
have a finite loss; otherwise the benchmark stops with exit code 1. images_per_s is the median over
the lines of metrics.jsonl except the first two of a start, in which kernels are compiled and the
loader fills its queues: the speed of loader, step and log together.
"""

import math
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.measuring import harness
from fastdeit.storage.attempts import read_attempts
from fastdeit.storage.jsonl import read_json_lines
from fastdeit.storage.run_folder import RunFolder

ROOT = Path(__file__).parent.parent
END_TO_END = {"native-mixed": 2, "exact-cpu": 1, "exact-cpu-gpu": 1, "native-hardware": 1}
"""The number of starts of a run of DeiT-S, by its name: backend and decoder, and `gpu` if the exact
backend augments there."""
WARM_UP = 2
"""The number of lines of a start that are excluded from images_per_s."""
SETTINGS = ("augment_backend", "decoder", "precision", "zero_stage")
COLUMNS = (
    *("run", "start", "exit_code", "seconds", "from_step", "to_step", "loss", "top1"),
    *("images_per_s", "batch"),
    *SETTINGS,
)


@dataclass(frozen=True)
class Sizes:
    """The sizes of the runs; on a CPU they only show that the runs pass."""

    digits: str
    stop: int
    """The steps of `digits` before its stop."""
    stage_steps: int
    files: int
    links: int
    student: str


SIZES = {
    "cuda": Sizes(
        digits="",
        stop=900,
        stage_steps=40,
        files=64,
        links=512,
        student="--model deit_small_distilled_patch16_224 --batch-size 1024 --stop-after-steps 60",
    ),
    "cpu": Sizes(
        digits="--epochs 2 --warmup-epochs 1",
        stop=60,
        stage_steps=4,
        files=4,
        links=8,
        student="--model deit_tiny_distilled_patch16_224 --input-size 32 --patch-size 8 "
        "--embed-dim 32 --depth 2 --num-heads 2 --batch-size 8 --stop-after-steps 6 --log-steps 1",
    ),
}


def runs(folder: Path, device: torch.device) -> dict[str, list[str]]:
    """Return the flags of each start, by the name of the run.

    On a CPU all runs decode and augment on the CPU, whatever the name is.
    """
    sizes = SIZES[device.type]
    data = f"--data-path {folder}/data/digits"
    digits = f"{data} --recipe digits --teacher-path {folder}/digits_teacher/model.safetensors"
    short = f"{digits} --stop-after-steps {sizes.stage_steps} --eval-epochs 1000 --log-steps 1"
    found = {
        "digits_teacher": [f"{data} --recipe digits_teacher {sizes.digits}"],
        "digits": 2 * [f"{digits} {sizes.digits} --stop-after-steps {sizes.stop}"],
        "stages": [f"{short} --zero-stage {stage}" for stage in (1, 2, 3)],
    }
    images = f"--data-path {folder}/data/images"
    student = f"{images} --distillation-type none --eval-epochs 1000 {sizes.student}"
    for name, starts in END_TO_END.items():
        backend, decoder, *place = name.split("-")
        flags = f"--augment-backend {backend}"
        if device.type == "cuda":
            flags += f" --decoder {decoder}" + (" --augment-device gpu" if place else "")
        found[name] = starts * [f"{student} {flags}"]
    return found


def write_data(folder: Path, sizes: Sizes) -> None:
    """Write JPEG files under many names to folder/train, and the first of each class to folder/val,
    unless the folder exists."""
    from benchmarks.loaders.images import write_images  # needs DALI and torchvision

    if folder.exists():
        return
    partial = folder.with_name("partial")
    shutil.rmtree(partial, ignore_errors=True)
    write_images(partial, sizes.files, sizes.links)
    for name in ("0/0000.jpg", "1/0001.jpg"):
        (partial / "val" / name).parent.mkdir(parents=True)
        (partial / "val" / name).hardlink_to(partial / "train" / name)
    partial.rename(folder)


def launch(flags: str, folder: Path, device: torch.device) -> int:
    """Run `deepspeed fastdeit/train.py` on one device; return its exit code.

    An interrupt kills the whole process group at once, this process included, so that no process of
    the run disturbs the next benchmark.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    number = "--num_gpus" if device.type == "cuda" else "--num_accelerators"
    launcher = f"deepspeed.launcher.runner -q --no_local_rank {number} 1 --master_port {port}"
    command = [sys.executable, "-m", *launcher.split(), "fastdeit/train.py", *flags.split()]
    command += ["--output-dir", str(folder)]
    print(*command, flush=True)
    accelerator = {} if device.type == "cuda" else {"DS_ACCELERATOR": "cpu"}
    try:
        return subprocess.run(command, cwd=ROOT, env=os.environ | accelerator).returncode
    except KeyboardInterrupt:
        os.killpg(0, signal.SIGKILL)
        raise


def last(lines: Sequence[dict[str, Any]], name: str) -> float:
    """Return the newest value of this name, or NaN."""
    return next((line[name] for line in reversed(lines) if name in line), math.nan)


def outcome(folder: RunFolder) -> dict[str, Any]:
    """Return the columns that the newest start has written to the run's folder."""
    attempts = read_attempts(folder)
    if not attempts:
        return {"from_step": 0, "to_step": 0, "loss": math.nan}
    attempt = attempts[-1]
    lines = [line for line in read_json_lines(folder.metrics) if line["step"] > attempt.step]
    rates = [line["images_per_s"] for line in lines if "images_per_s" in line][WARM_UP:]
    return {
        "from_step": attempt.step,
        "to_step": max((line["step"] for line in lines), default=attempt.step),
        "loss": last(lines, "loss"),
        "top1": last(lines, "model/both/top1"),
        "images_per_s": statistics.median(rates) if rates else math.nan,
        "batch": attempt.micro_batch * attempt.world_size,
        **{name: getattr(attempt, name) for name in SETTINGS},
    }


def fault_of(row: dict[str, Any], before: int) -> str:
    """Return the fault of a start that should have resumed from step `before`, or ""."""
    if row["exit_code"]:
        return f"ended with {row['exit_code']}"
    if row["from_step"] != before:
        return f"began at step {row['from_step']}, the one before stopped at {before}"
    if row["to_step"] <= before:
        return f"took no step after {before}"
    return "" if math.isfinite(row["loss"]) else f"has a loss of {row['loss']}"


def start_all(
    name: str, flags: Sequence[str], folder: Path, out: Path, device: torch.device
) -> str:
    """Run each start and append its row at once; return the fault of the first bad one, or ""."""
    stamp = harness.environment(device)
    before = 0
    for number, start in enumerate(flags, 1):
        began = time.monotonic()
        row: dict[str, Any] = {"run": name, "start": number}
        row["exit_code"] = launch(start, folder, device)
        row["seconds"] = time.monotonic() - began
        row |= outcome(RunFolder(folder))
        shown = dict(row)
        for key, value in row.items():
            if isinstance(value, float):
                shown[key] = f"{value:.4g}"
        harness.write_rows(out / "runs.csv", [{**stamp, **shown}], [*stamp, *COLUMNS])
        print(*(f"{key} {value}" for key, value in shown.items()), sep="  ", flush=True)
        fault = fault_of(row, before)
        if fault:
            return f"start {number} of {name} {fault}"
        before = row["to_step"]
    return ""


def main() -> int:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    parser = harness.make_parser(__doc__)
    parser.add_argument("run", choices=runs(Path(), device))
    parser.add_argument(
        "--folder", type=Path, default=ROOT / "runs", help="where the runs' folders go, and data/"
    )
    harness.add_out(parser)
    args = parser.parse_args()
    folder = args.folder.resolve()
    if args.run in END_TO_END:
        write_data(folder / "data" / "images", SIZES[device.type])
    flags = runs(folder, device)[args.run]
    fault = start_all(args.run, flags, folder / args.run, args.out, device)
    print(fault or f"{args.run}: all starts passed", flush=True)
    return 1 if fault else 0


if __name__ == "__main__":
    sys.exit(main())
