"""The commands of each stage."""

import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.imagenet.job import TEACHER, Job

Command = list[str]
JOBS = 3
"""The number of jobs that record one cache together."""
_STOP_SHARE = 0.37
_STRETCH = 30
"""The number of steps of the runs whose losses are compared."""
_PORT = 29577


def fastdeit(*words: str | Path) -> Command:
    """Return a command of fastdeit on one process."""
    return [sys.executable, "-m", "fastdeit", *map(str, words)]


def launch(ranks: int, *words: str | Path) -> Command:
    """Return a command of fastdeit on several processes of this machine."""
    if ranks == 1:
        return fastdeit(*words)
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "-q"]
    launcher += ["--num_accelerators", str(ranks), "--master_port", str(_PORT)]
    return [*launcher, "--no_local_rank", "--module", "fastdeit", *map(str, words)]


def run_task(name: str) -> Callable[[Job], list[Command]]:
    """Return the commands of a task of tasks.py."""

    def commands(job: Job) -> list[Command]:
        where = ["--folder", str(job.folder), "--scale", str(job.scale)]
        return [[sys.executable, "-m", "benchmarks.imagenet.tasks", name, *where]]

    return commands


def index_shards(job: Job) -> list[Command]:
    """Index the tar shards."""
    return [fastdeit("index", job.shards)]


def index_large(job: Job) -> list[Command]:
    """Index the shards of as many images as ImageNet-21k has."""
    return [fastdeit("index", job.large_shards)]


def index_folder(job: Job) -> list[Command]:
    """Index the class folders."""
    return [fastdeit("index", job.class_folders)]


def record(job: Job) -> list[Command]:
    """Record a part of an epoch in each of several jobs."""
    flags = [*job.samples, *_taught(job), "--epochs", "1"]
    jobs = [("--part", f"{number + 1}/{JOBS}", "-o", part(job, number)) for number in range(JOBS)]
    return [fastdeit("cache", "build", *flags, *its_own) for its_own in jobs]


def merge(job: Job) -> list[Command]:
    """Merge what the jobs recorded into one cache."""
    return [fastdeit("cache", "merge", *(part(job, n) for n in range(JOBS)), "-o", job.cache)]


def verify(job: Job) -> list[Command]:
    """Read the merged cache, and check it."""
    return [fastdeit("cache", "verify", job.cache)]


def part(job: Job, number: int) -> Path:
    """Return the folder in which a job records."""
    return job.folder / f"cache-{number}"


def begin_epoch(job: Job) -> list[Command]:
    """Train a part of an epoch on two processes."""
    return [_train(job, job.run, 2, stop_step(job.steps), *_recorded(job))]


def end_epoch(job: Job) -> list[Command]:
    """Train the rest of the epoch on one process."""
    return [_train(job, job.run, 1, 0, *_recorded(job))]


def train_whole(job: Job) -> list[Command]:
    """Train the compared steps without a stop, on one process."""
    return [_train(job, whole(job), 1, stretch(job))]


def train_first(job: Job) -> list[Command]:
    """Train the first of the compared steps on two processes."""
    return [_train(job, resumed(job), 2, stop_step(stretch(job)))]


def train_second(job: Job) -> list[Command]:
    """Train the rest of the compared steps on one process."""
    return [_train(job, resumed(job), 1, stretch(job) - stop_step(stretch(job)))]


def stop_step(steps: int) -> int:
    """Return the step of `steps` after which the number of processes changes."""
    return round(_STOP_SHARE * steps)


def stretch(job: Job) -> int:
    """Return the number of steps whose losses are compared."""
    return min(_STRETCH, job.steps - 1)


def whole(job: Job) -> Path:
    """Return the folder of the run that is never stopped."""
    return job.folder / "whole"


def resumed(job: Job) -> Path:
    """Return the folder of the run that continues on another number of processes."""
    return job.folder / "resumed"


def _train(job: Job, folder: Path, ranks: int, steps: int, *flags: str) -> Command:
    """Return the command of a training that stops after `steps` steps; 0: at the end."""
    words = [*job.student, *_taught(job), *flags, "--output-dir", str(folder)]
    return launch(ranks, "train", *words, "--stop-after-steps", str(steps))


def _recorded(job: Job) -> tuple[str, str]:
    return "--cache", str(job.cache)


def _taught(job: Job) -> list[str]:
    return ["--teacher-model", TEACHER, "--teacher-path", str(job.teacher)]


def evaluate(ranks: int) -> Callable[[Job], list[Command]]:
    """Return the commands of an evaluation on `ranks` processes, which writes predictions."""

    def commands(job: Job) -> list[Command]:
        return [launch(ranks, "evaluate", whole(job), "--predictions", predictions(job, ranks))]

    return commands


def predictions(job: Job, ranks: int) -> Path:
    """Return the file of predictions of an evaluation on `ranks` processes."""
    return job.folder / f"predictions-{ranks}.csv"


def pack(job: Job) -> list[Command]:
    """Pack without encoding: its time is that of reading and writing."""
    return [fastdeit("pack", job.shards, packed(job), "--copy")]


def verify_packed(job: Job) -> list[Command]:
    """Read the packed data set, and check it."""
    return [fastdeit("pack", packed(job), "--verify")]


def packed(job: Job) -> Path:
    """Return the folder of the packed data set."""
    return job.folder / "packed"


def export(job: Job) -> list[Command]:
    """Export the model of the run that was never stopped."""
    return [fastdeit("export", whole(job), "--output", job.folder / "exported")]
