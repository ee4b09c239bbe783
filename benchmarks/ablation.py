"""The ablation: runs in which one setting of the recipe differs, as in the paper's tables 3 and 8.

python -m benchmarks.ablation [--folder FOLDER] [--seeds N] [--out FOLDER] [FLAGS OF A TRAINING]

Trains DeiT-nano on Fashion-MNIST without and with distillation, and without each augmentation, with
the same seeds, steps and learning rate. The teacher is trained once and recorded once for each
seed; the three distilled arms read its records. All arms of a seed are trained before the next
seed, and each appends its scores to cpu-ablation.csv when it ends, so after a stop there is a table
of the seeds so far. The same command resumes; finished runs are not repeated.

Further flags are those of `fastdeit train`, for all arms. --recipe and --config replace the base;
then --teacher-path must name the teacher.
"""

import argparse
import resource
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.arms.scores import COSTS, append_scores
from benchmarks.arms.settings import (
    ARMS,
    CACHED,
    TEACHER,
    find_config,
    is_nano,
    list_flags,
    name_run,
)
from benchmarks.measuring import harness
from fastdeit.commands.errors import one_line_errors
from fastdeit.config.flags import split_flags
from fastdeit.config.parse import require_value
from fastdeit.storage.jsonl import append_lines
from fastdeit.storage.run_folder import RunFolder

OWN = ("--output-dir", "--seed", "--cache")
"""The flags that differ between the runs."""


def start(words: Sequence[str], launcher: str) -> None:
    """Run `fastdeit` with these words to its end. Raises CalledProcessError if it fails."""
    subprocess.run([*shlex.split(launcher), "fastdeit", *words], check=True)


def measure_start(folder: Path, name: str, words: Sequence[str], launcher: str) -> None:
    """Run `fastdeit`, and log its CPU seconds under a name, also if it fails."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    try:
        start(words, launcher)
    finally:
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
        append_lines(folder / COSTS, [{"run": name, "cpu_s": round(seconds, 1)}])


def train(folder: Path, run: Path, flags: Sequence[str], launcher: str) -> None:
    """Train a run, or resume it, unless it is finished. Raises SystemExit if it stopped early."""
    if RunFolder(run).is_finished:
        return
    words = ["train", *flags, "--output-dir", str(run)]
    measure_start(folder, run.name, words, launcher)
    if not RunFolder(run).is_finished:
        raise SystemExit(f"{run} stopped before its end; the same command resumes")


def find_teacher(folder: Path, flags: Sequence[str], launcher: str) -> list[str]:
    """Return the flags that name the teacher; if no flag names one, train that of the base."""
    if not is_nano(flags) or any(flag.startswith("--teacher") for flag in flags):
        return []
    run = folder / "teacher"
    data = find_config("base", flags).data.data_path
    train(folder, run, [*TEACHER, "--data-path", data], launcher)
    return ["--teacher-path", str(run)]


def record_teacher(folder: Path, seed: int, flags: Sequence[str], launcher: str) -> list[str]:
    """Record the teacher for the distilled arms of a seed, unless that is done; return the flags of
    their runs.

    The records have all logits of a small data set, for soft and hard distillation.
    """
    cache = folder / f"cache-{seed}"
    taught = ["--seed", str(seed), *find_teacher(folder, flags, launcher)]
    words = [*list_flags("soft", flags), *taught, "--kind", "topk", "--output", str(cache)]
    measure_start(folder, cache.name, ["cache", "build", *words], launcher)
    return [*taught, "--cache", str(cache)]


def run_seed(folder: Path, seed: int, flags: Sequence[str], launcher: str, out: Path) -> None:
    """Train every arm with a seed, and append the scores of each when it ends."""
    runs = {arm: name_run(folder, arm, seed) for arm in ARMS}
    missing = [arm for arm in CACHED if not RunFolder(runs[arm]).is_finished]
    taught = record_teacher(folder, seed, flags, launcher) if missing else []
    for arm, run in runs.items():
        own = taught if arm in CACHED else ["--seed", str(seed)]
        train(folder, run, [*list_flags(arm, flags), *own], launcher)
        append_scores(folder, arm, seed, out)
        print(f"{run} is finished; its scores are in {out}", flush=True)


def parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Return the flags of this benchmark, and all others, for the trainings."""
    parser = harness.make_parser(__doc__)
    harness.add_out(parser)
    parser.add_argument("--folder", type=Path, default=Path("runs/ablation"), help="of the runs")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0")
    launcher = "what starts `fastdeit`; deepspeed --no_local_rank --module: all GPUs"
    parser.add_argument("--launcher", default=f"{sys.executable} -m", help=launcher)
    return parser.parse_known_args(argv)


def check_flags(seeds: int, flags: Sequence[str]) -> None:
    """Raise ValueError for flags that no arm can have."""
    require_value(seeds >= 1, "--seeds", seeds, "1 or more")
    for name, _ in split_flags(flags):
        if name in OWN:
            raise ValueError(f"{name} is set for each run (--folder, --seeds)")
    for arm in ARMS:
        find_config(arm, flags)


def main(argv: Sequence[str] | None = None) -> None:
    args, flags = parse(argv)
    with one_line_errors():  # a mistake is found before any work
        check_flags(args.seeds, flags)
        for folder in (args.folder, args.out):
            folder.mkdir(parents=True, exist_ok=True)
    for seed in range(args.seeds):
        run_seed(args.folder, seed, flags, args.launcher, args.out)


if __name__ == "__main__":
    main()
