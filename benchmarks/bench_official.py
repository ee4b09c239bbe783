"""deit's own trainer and ours on the same real images, with the same flags and updates.

python -m benchmarks.bench_official --deit CHECKOUT --python PYTHON [--folder FOLDER]

deit's checkout is not changed; PYTHON is that of an environment with torch, torchvision and timm
0.3.2 (docs/coming-from-deit.md). The images are those of Fashion-MNIST as PNG files in class
folders, the teacher is a RegNetY that is trained once. The first optimizer step is compared first:
from the same weights, batch and teacher, deit's loss and gradients must equal ours. Then both
trainers run for two epochs, and to the end for each seed, both at the same time (`--jobs 2`), so
that other work on the machine affects both. A row of results/cpu-official.csv has the CPU time of
the process and of its children for everything: start, training, evaluations, files. The same
command continues with the runs that have no row.
"""

import argparse
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.measuring import harness
from benchmarks.official import commands, inputs
from benchmarks.official.comparison import describe_difference
from benchmarks.official.first_step import compare_first_step
from benchmarks.official.runs import read_deit_top1, read_our_top1, run_command
from benchmarks.tables import read_rows
from fastdeit.commands.errors import one_line_errors

SHORT = 2
"""The epochs of each trainer's short run; what a long run uses beyond it is training alone."""
COLUMNS = (
    *("date", "commit", "gpu", "cpu", *harness.PACKAGES, "deit", "deit_torch", "deit_timm"),
    *("impl", "seed", "train_images", "val_images", "epochs", "updates"),
    *("top1", "cpu_s", "wall_s"),
)


class Job(NamedTuple):
    """A run of a trainer."""

    impl: str
    seed: int
    epochs: int


TEACHER = Job("teacher", 0, 4)


def list_jobs(epochs: int, seeds: int) -> list[Job]:
    """Return the runs in their order, both trainers in turns: a short run, then the seeds."""
    runs = [(0, SHORT), *((seed, epochs) for seed in range(seeds))]
    return [Job(impl, *run) for run in runs for impl in ("deit", "fastdeit")]


def make_command(job: Job, args: argparse.Namespace, output: Path) -> list[str]:
    """Return the command line of a run, which writes into `output`."""
    if job.impl == "teacher":
        return commands.teacher_command(args.folder, job.epochs, output)
    flags = commands.list_flags(args.folder, seed=job.seed, epochs=job.epochs)
    if job.impl == "deit":
        return commands.deit_command(commands.Deit(args.deit, args.python), flags, output)
    return commands.our_command(flags, output)


def run_job(job: Job, args: argparse.Namespace) -> harness.Row:
    """Run a trainer, and return the columns of its row."""
    output = args.folder / "runs" / f"{job.impl}-{job.seed}-{job.epochs}"
    usage = run_command(make_command(job, args, output), output)
    if job.impl == "teacher":
        inputs.write_teacher(output, args.folder / "teacher.pth")
    top1 = read_deit_top1(output) if job.impl == "deit" else read_our_top1(output)
    return {
        **job._asdict(),
        "train_images": args.images,
        "val_images": args.val_images,
        "updates": job.epochs * (args.images // commands.BATCH),
        "top1": round(top1, 2),
        "cpu_s": round(usage.cpu_s, 1),
        "wall_s": round(usage.wall_s, 1),
    }


def list_done(args: argparse.Namespace) -> Iterator[Job]:
    """Yield the runs of this size that have a row."""
    if not (args.out / "cpu-official.csv").exists():
        return
    for row in read_rows("cpu-official", args.out):
        if row["train_images"] == str(args.images) and row["val_images"] == str(args.val_images):
            yield Job(row["impl"], int(row["seed"]), int(row["epochs"]))


def describe_deit(args: argparse.Namespace) -> harness.Row:
    """Return the columns of deit's commit and of the versions in its environment."""
    git = ["git", "-C", str(args.deit), "rev-parse", "--short", "HEAD"]
    code = "from importlib.metadata import version as v; print(v('torch'), v('timm'))"
    found = [
        subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        for command in (git, [str(args.python), "-c", code])
    ]
    names = ("deit", "deit_torch", "deit_timm")
    return dict(zip(names, [*found[0], *found[1]], strict=True))


def parse_args() -> argparse.Namespace:
    """Return the flags, with absolute paths; exit with a message if they are wrong."""
    parser = harness.make_parser(__doc__)
    harness.add_out(parser)
    parser.add_argument("--deit", type=Path, required=True, help="a checkout of deit")
    parser.add_argument("--python", type=Path, required=True, help="Python of deit's environment")
    parser.add_argument("--folder", type=Path, default=Path("runs/official"), help="for the runs")
    parser.add_argument("--source", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--images", type=int, default=10240, help="of training, a multiple of 256")
    parser.add_argument("--val-images", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time")
    args = parser.parse_args()
    if args.images % 256 or args.images <= 0:
        parser.error(f"--images must be a multiple of 256, as deit's sampler (got {args.images})")
    for name in ("epochs", "seeds", "jobs"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be 1 or more (got {getattr(args, name)})")
    for name, allowed in (("deit", args.deit / "main.py"), ("python", args.python)):
        if not allowed.is_file():
            parser.error(f"--{name} must have the file {allowed.name} (got {getattr(args, name)})")
    # a relative path would be that of another folder in deit's process
    for name in ("deit", "python", "folder"):
        setattr(args, name, getattr(args, name).absolute())
    return args


def measure(jobs: Sequence[Job], args: argparse.Namespace, stamp: harness.Row) -> None:
    """Run trainers, `--jobs` at the same time, and write a row for each as soon as it has ended.

    The others also get their rows if a run fails. Raises its error after the last of them.
    """
    errors: list[BaseException] = []
    with ThreadPoolExecutor(args.jobs) as pool:
        runs = {pool.submit(run_job, job, args): job for job in jobs}
        for run in as_completed(runs):
            if error := run.exception():
                errors.append(error)
                continue
            row = stamp | run.result()
            harness.write_rows(args.out / "cpu-official.csv", [row], COLUMNS)
            print(*runs[run], f"top-1 {row['top1']} %, CPU {row['cpu_s']} s", flush=True)
    if errors:
        raise errors[0]


def main() -> None:
    args = parse_args()
    counts = {"train": args.images, "val": args.val_images}
    with one_line_errors():
        inputs.write_images(args.source, args.folder / "images", counts)
    stamp = harness.environment(torch.device("cpu")) | describe_deit(args)
    done = set(list_done(args))
    measure([job for job in [TEACHER] if job not in done], args, stamp)
    print("first step:", compare_first_step(args.deit, args.python, args.folder), flush=True)
    measure([job for job in list_jobs(args.epochs, args.seeds) if job not in done], args, stamp)
    if args.seeds > 1:
        print("top-1, ours less deit's:", describe_difference(read_rows("cpu-official", args.out)))


if __name__ == "__main__":
    main()
