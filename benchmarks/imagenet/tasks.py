"""The stages that are not commands of fastdeit, each in its own process.

python -m benchmarks.imagenet.tasks TASK --folder FOLDER --scale SCALE

A task writes its facts to FOLDER/facts/TASK.json. Its function imports what it needs, so that its
memory does not include that of other tasks.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.imagenet.job import EPOCHS, TEACHER, Job
from benchmarks.imagenet.stand_in import link_shards, write_folder, write_shards
from fastdeit.data.indexing import build_index
from fastdeit.data.snapshot import keep_images, reconcile
from fastdeit.plan.build import build_plan
from fastdeit.storage.jsonl import read_json_lines

_SEED = 0
Facts = dict[str, float | int | str]


def write(job: Job) -> Facts:
    """Write the stand-in as shards and, a tenth of it, as class folders."""
    sizes = {"train": job.images, "val": job.validation}
    for split, images in sizes.items():
        for _ in write_shards(job.shards / split, images, job.classes, _SEED):
            pass
    sizes = {"train": job.folder_images, "val": max(job.validation // 10, job.classes)}
    for split, images in sizes.items():
        for _ in write_folder(job.class_folders / split, images, job.classes, _SEED):
            pass
    return {}


def teacher(job: Job) -> Facts:
    """Write a small teacher with random weights."""
    import timm
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(_SEED)
    model = timm.create_model(TEACHER, num_classes=job.classes)
    save_file(model.state_dict(), job.teacher, {"input_size": "32"})
    return {}


def start(job: Job) -> Facts:
    """Do what each rank of a run does before its first batch, with a stored index; and what a
    resumed run does with the stored images that it began with."""
    return _start(job, job.shards)


def link_21k(job: Job) -> Facts:
    """Link the shards until they have as many images as ImageNet-21k."""
    images = link_shards(job.shards / "train", job.large_shards / "train", job.images, job.large)
    link_shards(job.shards / "val", job.large_shards / "val", job.validation, job.validation)
    return {"images": images}


def start_21k(job: Job) -> Facts:
    """Do what `start` does with the images of ImageNet-21k."""
    return _start(job, job.large_shards)


def _start(job: Job, shards: Path) -> Facts:
    """Time the steps of a start; return their CPU seconds."""
    clock = _Clock()
    index = build_index(shards, "train")
    clock.lap("index")
    index.fingerprint()
    clock.lap("fingerprint")
    plan = build_plan(job.config, index.sizes)
    plan.fingerprint()
    clock.lap("plan")
    plan.images(0, np.arange(job.batch))
    clock.lap("order of an epoch")
    plan.exclude(np.arange(100))
    plan.images(0, np.arange(job.batch))
    clock.lap("order with exclusions")
    snapshot = job.folder / "snapshot.parquet"
    keep_images(index, snapshot)
    clock.lap("snapshot, written")
    reconcile(index, snapshot)
    clock.lap("snapshot, compared")
    return clock.seconds


class _Clock:
    """The CPU seconds of the steps of a task, by name."""

    def __init__(self) -> None:
        self.seconds: Facts = {}
        self._since = time.process_time()

    def lap(self, name: str) -> None:
        """Store the time since the last call under a name."""
        now = time.process_time()
        self.seconds[name] = round(now - self._since, 3)
        self._since = now


def plan(job: Job) -> Facts:
    """Check the plan of 300 epochs."""
    from benchmarks.imagenet.planning import check_plan

    return check_plan(job, build_index(job.shards, "train").sizes)


def log(job: Job) -> Facts:
    """Read the log of a run of 300 epochs, as a resumed run and a report do."""
    from benchmarks.bench_report import write_log
    from fastdeit.report.record import read_run

    folder = job.folder / "log"
    folder.mkdir(exist_ok=True)
    write_log(folder, EPOCHS * job.steps)
    clock = _Clock()
    lines = read_json_lines(folder / "metrics.jsonl")
    clock.lap("lines")
    read_run(folder)
    clock.lap("record")
    size = (folder / "metrics.jsonl").stat().st_size / 1e6
    return {**clock.seconds, "MB": round(size, 2), "number of lines": len(lines)}


TASKS: dict[str, Callable[[Job], Facts]] = {
    task.__name__: task for task in (write, link_21k, teacher, start, start_21k, plan, log)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--scale", type=float, required=True)
    args = parser.parse_args()
    job = Job(args.folder, args.scale)
    facts = TASKS[args.task](job)
    target = args.folder / "facts" / f"{args.task}.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
