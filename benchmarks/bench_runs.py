"""Whole runs on one device under DeepSpeed's launcher: the recipes, stops and what goes on after
them, DeiT-S end to end.

python -m benchmarks.bench_runs NAME [--folder FOLDER] [--out FOLDER]

A name stands for some starts one after the other: the same command again after a stop, or with
another ZeRO stage. Each start leaves a row in runs.csv. It must end with 0, go on where the one
before stopped, and have a finite loss; the first that does not ends the benchmark with exit code 1.
images_per_s is the median over the lines of metrics.jsonl after the first two of a start, in which
kernels are compiled and the loader fills up: what training sees of the loader, the step and the log
together.
"""

import argparse
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

from benchmarks import harness
from fastdeit.run.attempts import read_attempts
from fastdeit.storage.jsonl import read_json_lines
from fastdeit.storage.run_folder import RunFolder

ROOT = Path(__file__).parent.parent
END_TO_END = {"native-mixed": 2, "exact-cpu": 1, "native-hardware": 1}
"""Backend and decoder of DeiT-S's data, and how often its command is started."""
WARM_UP = 2
"""Lines of a start that do not count."""
COLUMNS = (
    *(
        "run",
        "start",
        "exit_code",
        "seconds",
        "from_step",
        "to_step",
        "loss",
        "top1",
        "images_per_s",
        "batch",
    ),
    *("augment_backend", "decoder", "precision", "zero_stage"),
)


@dataclass(frozen=True)
class Sizes:
    """What differs between a GPU and a CPU, on which only the way through matters."""

    digits: str
    stop: int
    """Steps of `digits` before its stop."""
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
        student="--model deit_tiny_distilled_patch16_224 --input-size 32 --patch-size 8 --embed-dim 32 --depth 2 --num-heads 2 "
        "--batch-size 8 --stop-after-steps 6 --log-steps 1",
    ),
}


def runs(folder: Path, device: torch.device) -> dict[str, list[str]]:
    """The flags of each start, by the name of the run. A CPU decodes by itself, whatever the name
    says."""
    sizes = SIZES[device.type]
    teacher = f"--data-path {folder}/data/digits"
    digits = f"{teacher} --recipe digits --teacher-path {folder}/digits_teacher/student.safetensors"
    short = f"{digits} --stop-after-steps {sizes.stage_steps} --eval-epochs 1000 --log-steps 1"
    student = f"--data-path {folder}/data/images --distillation-type none --eval-epochs 1000 {sizes.student}"
    decoders = {name: name.split("-")[1] if device.type == "cuda" else "cpu" for name in END_TO_END}
    loaders = {
        name: f"--augment-backend {name.split('-')[0]} --decoder {decoders[name]}"
        for name in END_TO_END
    }
    return {
        "digits_teacher": [f"{teacher} --recipe digits_teacher {sizes.digits}"],
        "digits": 2 * [f"{digits} {sizes.digits} --stop-after-steps {sizes.stop}"],
        "stages": [f"{short} --zero-stage {stage}" for stage in (1, 2, 3)],
        **{name: END_TO_END[name] * [f"{student} {loader}"] for name, loader in loaders.items()},
    }


def write_data(folder: Path, sizes: Sizes) -> None:
    """Write JPEG files under many names to folder/train, the first of each class to folder/val,
    unless they are there."""
    from benchmarks.loaders import write_images  # needs DALI and torchvision

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
    """The exit code of `deepspeed fastdeit/train.py` on one device, its output passed through.

    An interrupt kills the whole process group at once, this process too: nothing of a run may live
    on beside what comes next.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    where = "--num_gpus" if device.type == "cuda" else "--num_accelerators"
    launcher = [
        sys.executable,
        "-m",
        "deepspeed.launcher.runner",
        "-q",
        "--no_local_rank",
        where,
        "1",
    ]
    command = [
        *launcher,
        "--master_port",
        str(port),
        "fastdeit/train.py",
        *flags.split(),
        "--output-dir",
        str(folder),
    ]
    print(*command, flush=True)
    accelerator = {} if device.type == "cuda" else {"DS_ACCELERATOR": "cpu"}
    try:
        return subprocess.run(command, cwd=ROOT, env=os.environ | accelerator).returncode
    except KeyboardInterrupt:
        os.killpg(0, signal.SIGKILL)
        raise


def last(lines: Sequence[dict[str, Any]], name: str) -> float:
    """The newest value of that name, NaN if there is none."""
    return next((line[name] for line in reversed(lines) if name in line), math.nan)


def outcome(folder: RunFolder) -> dict[str, Any]:
    """What the newest start left in the run's folder."""
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
        **{
            name: getattr(attempt, name)
            for name in ("augment_backend", "decoder", "precision", "zero_stage")
        },
    }


def fault_of(row: dict[str, Any], before: int) -> str:
    """What is wrong with a start that should have gone on from step `before`, or ""."""
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
    """Each start, its row written at once; what is wrong with the first that went wrong, or ""."""
    stamp, before = harness.environment(device), 0
    for number, start in enumerate(flags, 1):
        began = time.monotonic()
        row: dict[str, Any] = {
            "run": name,
            "start": number,
            "exit_code": launch(start, folder, device),
        }
        row |= {"seconds": time.monotonic() - began} | outcome(RunFolder(folder))
        shown = {
            key: f"{value:.4g}" if isinstance(value, float) else value for key, value in row.items()
        }
        harness.write_rows(out / "runs.csv", [{**stamp, **shown}], [*stamp, *COLUMNS])
        print(*(f"{key} {value}" for key, value in shown.items()), sep="  ", flush=True)
        fault = fault_of(row, before)
        if fault:
            return f"start {number} of {name} {fault}"
        before = row["to_step"]
    return ""


def main() -> int:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", choices=runs(Path(), device))
    parser.add_argument(
        "--folder", type=Path, default=ROOT / "runs", help="where the runs' folders go, and data/"
    )
    parser.add_argument("--out", type=Path, default=harness.RESULTS, help="folder of the results")
    asked = parser.parse_args()
    folder = asked.folder.resolve()
    if asked.run in END_TO_END:
        write_data(folder / "data" / "images", SIZES[device.type])
    fault = start_all(
        asked.run, runs(folder, device)[asked.run], folder / asked.run, asked.out, device
    )
    print(fault or f"{asked.run}: all starts well", flush=True)
    return 1 if fault else 0


if __name__ == "__main__":
    sys.exit(main())
