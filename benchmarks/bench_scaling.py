"""A step on more processes: measured with one and two on this machine's CPU, estimated for GPUs.

python -m benchmarks.bench_scaling [-o FILE]

Each process trains with its own batch (weak scaling) under torchrun, with one thread. cpu_ms is the
CPU time of a process for a step, median; efficiency is that of one process divided by it, so 1
means that the others cost nothing. The processes sleep while they wait, and share the machine's
caches.

No GPU has confirmed the estimate: the kernels' time is that of fastdeit/estimate/roofline.py, and
the time of an H100's links that of step.py beside it. `hidden`: the gradient is reduced in pieces,
as --overlap-reduce auto would divide it, during the backward pass, two thirds of the kernels' time.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from benchmarks.measuring import harness
from benchmarks.measuring.trainers import make_batch, make_config, make_trainer
from benchmarks.roofline import shape_of
from fastdeit.distributed.world import init_distributed
from fastdeit.estimate.roofline import step_ms
from fastdeit.estimate.step import scale_step
from fastdeit.training.zero.links import Links

PARAMETERS = {"tiny": 5.9e6, "small": 22.4e6, "base": 87.3e6}
GPUS = (1, 8, 16, 64, 256, 1024)
BATCH = 128
"""The batch of a GPU."""
MEASURED = ("toy", "tiny")
STEPS = 8
WARM_UP = 2


def measure_rank(student: str) -> None:
    """Print the median CPU milliseconds of a step of this rank, as JSON, on rank 0."""
    torch.set_num_threads(1)
    world = init_distributed()
    size = 8 if student == "toy" else 2
    config = make_config(student, size * world.size, precision="fp32", zero_stage=2)
    config = config.replace(optim={"micro_batch": size})
    trainer = make_trainer(config, world)
    batch = make_batch(size, world.device, config.data.input_size)
    times = []
    for _ in range(WARM_UP + STEPS):
        start = time.process_time()
        trainer.train_step([batch])
        times.append(1e3 * (time.process_time() - start))
    trainer.engine.destroy()
    if world.rank == 0:
        print(json.dumps(statistics.median(times[WARM_UP:])))


def run_ranks(student: str, ranks: int) -> float:
    """Return the CPU milliseconds of a step on `ranks` processes."""
    launcher = ["torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    command = [sys.executable, "-m", *launcher, "-m", "benchmarks.bench_scaling", "--of", student]
    kept = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=os.environ | kept, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return float(json.loads(done.stdout.splitlines()[-1]))


def measure() -> list[harness.Row]:
    """Return the rows of one and of two processes, for each student."""
    rows: list[harness.Row] = []
    for student in MEASURED:
        alone = run_ranks(student, 1)
        for ranks in (1, 2):
            cpu_ms = alone if ranks == 1 else run_ranks(student, ranks)
            row: harness.Row = {"what": "measured", "student": student, "ranks": ranks}
            rows.append(row | {"step_ms": f"{cpu_ms:.2f}", "efficiency": f"{alone / cpu_ms:.3f}"})
    return rows


def estimate(student: str, ranks: int, links: Links) -> harness.Row:
    """Return a step's estimated milliseconds, and the share of the kernels' time in it."""
    kernels = step_ms(shape_of(student), BATCH)
    step = scale_step(kernels, PARAMETERS[student], ranks, links)
    return {
        "what": "estimate",
        "student": student,
        "ranks": ranks,
        "step_ms": f"{step.after_ms:.2f}",
        "efficiency": f"{kernels / step.after_ms:.3f}",
        "pieces": step.pieces,
        "hidden_ms": f"{step.hidden_ms:.2f}",
        "hidden_efficiency": f"{kernels / step.hidden_ms:.3f}",
    }


COLUMNS = (
    "what",
    "student",
    "ranks",
    "step_ms",
    "efficiency",
    "pieces",
    "hidden_ms",
    "hidden_efficiency",
)


def main() -> None:
    parser = harness.make_parser(__doc__)
    parser.add_argument("-o", "--output", type=Path, default=harness.RESULTS / "cpu-scaling.csv")
    parser.add_argument("--of", choices=MEASURED, help="measure this rank; used by the processes")
    args = parser.parse_args()
    if args.of:
        measure_rank(args.of)
        return
    estimates = [estimate(student, ranks, Links()) for student in PARAMETERS for ranks in GPUS]
    stamp = harness.environment(torch.device("cpu"))
    rows = [stamp | row for row in measure() + estimates]
    for row in rows:
        print("  ".join(f"{row[name]}" for name in COLUMNS if name in row))
    harness.write_rows(args.output, rows, [*stamp, *COLUMNS])


if __name__ == "__main__":
    main()
