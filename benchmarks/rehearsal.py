"""A dress rehearsal of ImageNet: every stage of a run at its real number of images, on a CPU.

python -m benchmarks.rehearsal --folder FOLDER [--scale 1] [--stages index plan ...]

The images are a stand-in (benchmarks/imagenet/stand_in.py): as many JPEG files, of similar sizes,
with few bytes. The student and its images are small, so that everything else is measured. Each
stage is a child process, a real command if there is one; it is skipped if it was done before in
FOLDER, which has one scale, and a row of results/cpu-rehearsal.csv has its costs:

  samples       images or samples that it handles
  processes     those that are started together, without their own child processes
  peak_mib      resident memory of all its processes together, shared pages counted in each
  swing_pct     half the difference of largest and smallest memory where it must be flat, in percent
  files         largest number of open files at a time; threads: that of threads
  read_mb       requested, also from the page cache; disk_mb: of these, from the disk; written_mb
  us_per_sample CPU time
  facts         the facts of the stage, as JSON

The exit code is 1 if memory that must be flat swings by more than 2 %. At full size it needs 12 GB
of disk and about 70 minutes of two cores; --scale 0.002 takes two minutes.
"""

import json
import sys
from pathlib import Path

import torch

from benchmarks.imagenet.job import Job
from benchmarks.imagenet.stages import STAGES, Stage
from benchmarks.imagenet.watch import Cost, watch
from benchmarks.measuring import harness
from fastdeit.commands.errors import one_line_errors
from fastdeit.storage.atomic import atomic_write_text

_ALLOWED_PCT = 2.0


def run_stage(stage: Stage, job: Job) -> harness.Row:
    """Run a stage and return its row. Raises RuntimeError or AssertionError if it fails."""
    stage.clear(job)
    commands = stage.commands(job)
    log = job.folder / "logs" / f"{stage.name.replace(' ', '-')}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    cost = watch(commands, log)
    return describe(stage, job, cost, len(commands)) | {"facts": json.dumps(stage.check(job, cost))}


def describe(stage: Stage, job: Job, cost: Cost, processes: int) -> harness.Row:
    """Return the columns of a stage's costs."""
    samples = stage.samples(job)
    return {
        "stage": stage.name,
        "scale": job.scale,
        "samples": samples,
        "processes": processes,
        "wall_s": round(cost.wall_s, 1),
        "cpu_s": round(cost.cpu_s, 1),
        "us_per_sample": round(1e6 * cost.cpu_s / samples, 2),
        "peak_mib": round(cost.peak_mib),
        "swing_pct": round(stage.swing(job, cost), 2) if stage.swing else "",
        "files": cost.files,
        "threads": cost.threads,
        "read_mb": round(cost.asked / 1e6),
        "disk_mb": round(cost.disk / 1e6),
        "written_mb": round(cost.written / 1e6),
    }


def run_once(stage: Stage, job: Job, output: Path) -> harness.Row:
    """Run a stage unless it was done before, and append its row; return the row."""
    done = job.folder / "done" / f"{stage.name}.json"
    if done.exists():
        return dict(json.loads(done.read_text()))
    row = harness.environment(torch.device("cpu")) | run_stage(stage, job)
    harness.write_rows(output, [row], [*row])
    done.parent.mkdir(exist_ok=True)
    done.write_text(json.dumps(row))
    return row


def fix_scale(folder: Path, scale: float) -> None:
    """Write the scale to the folder. Raises ValueError for a scale that is not possible, or is not
    that of the images there."""
    if not 0 < scale <= 1:
        raise ValueError(f"--scale must be above 0, at most 1 (got {scale})")
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "scale.json"
    if not file.exists():
        atomic_write_text(file, json.dumps(scale))
    found = json.loads(file.read_text())
    if found != scale:
        raise ValueError(f"--scale must be {found}, that of the images in {folder} (got {scale})")


def show(row: harness.Row) -> None:
    """Print the row of a stage as one line."""
    memory = f"{row['peak_mib']:>6} MiB"
    swing = f" +-{row['swing_pct']} %" if row["swing_pct"] != "" else ""
    cost = f"{row['wall_s']:>7} s, {row['cpu_s']:>7} CPU s, {row['us_per_sample']:>9} us a sample"
    print(f"{row['stage']:<16}{cost}, {memory}{swing}  {row['facts']}", flush=True)


def main() -> int:
    parser = harness.make_parser(__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="of the images and results")
    parser.add_argument("--scale", type=float, default=1.0, help="share of ImageNet's images")
    names = [stage.name for stage in STAGES]
    parser.add_argument("--stages", nargs="+", choices=names, default=names)
    parser.add_argument("-o", "--output", type=Path, default=harness.RESULTS / "cpu-rehearsal.csv")
    args = parser.parse_args()
    job = Job(args.folder.absolute(), args.scale)
    with one_line_errors():
        fix_scale(job.folder, job.scale)
    swings = [0.0]
    for stage in STAGES:
        if stage.name in args.stages:
            row = run_once(stage, job, args.output)
            show(row)
            swings.append(float(row["swing_pct"] or 0))
    return int(max(swings) > _ALLOWED_PCT and job.scale == 1)


if __name__ == "__main__":
    sys.exit(main())
