"""The stages of the rehearsal, in an order in which each finds the files that it needs."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.imagenet import checks, commands
from benchmarks.imagenet.commands import Command
from benchmarks.imagenet.job import EPOCHS, Job
from benchmarks.imagenet.watch import Cost

_WHOLE_EPOCHS = 3


def _nothing(job: Job, cost: Cost) -> checks.Facts:
    return {}


@dataclass(frozen=True)
class Stage:
    """One stage.

    commands: those that are started together. samples: the number that it handles. check: a
    function that raises AssertionError if the stage failed, else returns facts. clears: folders
    that an earlier attempt may have left. swing: a function that returns by how many percent the
    memory varied where it must be flat.
    """

    name: str
    commands: Callable[[Job], list[Command]]
    samples: Callable[[Job], int]
    check: Callable[[Job, Cost], checks.Facts] = _nothing
    clears: tuple[str, ...] = ()
    swing: Callable[[Job, Cost], float] | None = None

    def clear(self, job: Job) -> None:
        """Remove what an earlier attempt left."""
        for name in self.clears:
            shutil.rmtree(job.folder / name, ignore_errors=True)


def _all_images(job: Job) -> int:
    return job.images + job.validation


def _images(job: Job) -> int:
    return job.images


def _epoch(job: Job) -> int:
    return job.steps * job.batch


def _large(job: Job) -> int:
    return int(checks.read_facts("link_21k", job)["images"])


def _stretch(job: Job) -> int:
    return commands.stretch(job) * job.batch


def _validation(job: Job) -> int:
    return job.validation


STAGES = [
    Stage("write", commands.run_task("write"), _all_images),
    Stage("index", commands.index_shards, _all_images, clears=("shards/.fastdeit",)),
    Stage("index again", commands.index_shards, _all_images),
    Stage(
        "index folder",
        commands.index_folder,
        lambda job: job.folder_images,
        clears=("folder/.fastdeit",),
    ),
    Stage("start", commands.run_task("start"), _images, checks.facts_of("start")),
    Stage("link 21k", commands.run_task("link_21k"), _large, clears=("large",)),
    Stage("index 21k", commands.index_large, _large, clears=("large/.fastdeit",)),
    Stage("start 21k", commands.run_task("start_21k"), _large, checks.facts_of("start_21k")),
    Stage(
        "plan",
        commands.run_task("plan"),
        lambda job: _WHOLE_EPOCHS * _epoch(job),
        checks.check_plan,
    ),
    Stage(
        "log", commands.run_task("log"), lambda job: EPOCHS * _epoch(job), checks.facts_of("log")
    ),
    Stage("teacher", commands.run_task("teacher"), lambda job: 1),
    Stage("cache", commands.record, _images, swing=checks.swing_of_recording),
    Stage("cache merge", commands.merge, _images, checks.check_cache, clears=("cache",)),
    Stage("cache verify", commands.verify, _images),
    Stage("stretch whole", commands.train_whole, _stretch, clears=("whole",)),
    Stage("stretch begun", commands.train_first, _stretch, clears=("resumed",)),
    Stage("stretch resumed", commands.train_second, _stretch, checks.check_stretch),
    Stage(
        "epoch on two",
        commands.begin_epoch,
        lambda job: commands.stop_step(job.steps) * job.batch,
        checks.check_epoch,
        clears=("run",),
    ),
    Stage(
        "epoch on one",
        commands.end_epoch,
        lambda job: (job.steps - commands.stop_step(job.steps)) * job.batch,
        checks.check_epoch,
        swing=checks.swing_of_training,
    ),
    Stage("evaluate", commands.evaluate(1), _validation, checks.check_evaluation(1)),
    Stage("evaluate on two", commands.evaluate(2), _validation, checks.check_evaluation(2)),
    Stage("pack", commands.pack, _all_images, checks.check_pack, clears=("packed",)),
    Stage("pack verify", commands.verify_packed, _all_images),
    Stage("export", commands.export, lambda job: 1, clears=("exported",)),
]
