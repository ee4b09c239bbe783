"""A whole run as a function, `train_run`, and its parts, which `fastdeit train` calls too; what a
run needs of a GPU, `estimate_memory`, and altogether, `estimate_run`; the page on runs,
`write_report`; their differences, `compare_runs`."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from fastdeit.config.parse import parse_time_limit, require, require_value
from fastdeit.config.schema import Config
from fastdeit.data.build import fetch_data, pipeline_options
from fastdeit.display.terminal import Terminal
from fastdeit.distributed.collectives import each_rank, first_on_rank0, on_rank0
from fastdeit.distributed.errors import RunError
from fastdeit.distributed.world import World, init_distributed
from fastdeit.estimate.build import count_data, estimate_config
from fastdeit.estimate.gpus import find_gpu, make_devices
from fastdeit.estimate.lines import Estimate
from fastdeit.estimate.samples import find_data_set
from fastdeit.library.errors import names_arguments
from fastdeit.mirror.build import open_mirror
from fastdeit.mirror.mirror import RunMirror
from fastdeit.models.build import build_model, follow_weights
from fastdeit.models.teachers.ensemble import LiveTeacher
from fastdeit.reliability.launcher import Launcher
from fastdeit.reliability.run_lock import RunLock
from fastdeit.reliability.supervisor import StopAgreed, Supervisor
from fastdeit.report import build, differences
from fastdeit.report.record import read_run
from fastdeit.run.identity import check_same_everywhere, check_same_run
from fastdeit.run.preflight import check_config, fetch_weight_files
from fastdeit.storage.atomic import read_bounded
from fastdeit.storage.json_values import load_json
from fastdeit.storage.run_folder import RunFolder
from fastdeit.storage.urls import is_url
from fastdeit.tracking.build import check_trackers, load_callbacks
from fastdeit.tracking.callbacks import Callback
from fastdeit.training.build import build_deepspeed_config
from fastdeit.training.memory.build import build_planner, find_micro_batch
from fastdeit.training.memory.plan import MemoryPlan

if TYPE_CHECKING:
    from fastdeit.run.state import Run

_COLLECTIVE_MARGIN_S = 60  # the watchdog acts before the collectives' own time-out
_MAX_BYTES = 1 << 22
"""The largest size of summary.json, in bytes."""


class Guards(NamedTuple):
    """The supervisor, the lock and the mirror of a run, from before it joins the other ranks to its
    end."""

    supervisor: Supervisor
    lock: RunLock
    mirror: RunMirror


@contextlib.contextmanager
def guard_run(
    config: Config, launcher: Launcher | None = None, *, owns_process: bool = True
) -> Iterator[Guards]:
    """Open the guards of a run; launcher, owns_process: as `Supervisor` takes them."""
    output = config.run.output_dir
    folder, limits = RunFolder.of(output), config.limits.sections()
    time_limit = parse_time_limit(config.run.time_limit)
    with (
        Supervisor(folder, limits, time_limit, launcher, owns_process) as supervisor,
        RunLock(folder) as lock,
        RunMirror(output) as mirror,
    ):
        yield Guards(supervisor, lock, mirror)


@names_arguments()
def train_run(config: Config, *, callbacks: Sequence[Callback] = ()) -> dict[str, Any]:
    """Train a run to its end, resume it, or find it finished; return what summary.json holds:
    results, steps, skipped.

    A run that stopped before its end (stop_after_steps, time_limit, a file `stop` in its folder)
    has `stopped`, the reason, in place of results; the same call resumes it. It works without a
    launcher, in one process, and on every rank of torchrun or deepspeed together. callbacks:
    `fastdeit.Callback`, called on rank 0, each in a thread of its own. No signal is taken and
    nothing exits; an interrupted run resumes from its newest checkpoint. Raises ValueError for what
    cannot be used, RunError for a run that failed.
    """
    folder = config.run.output_dir
    require(bool(folder), "output_dir", folder, "the folder of the run")
    named = config.tracking.callback
    require(not named, "callback", named, "empty here: train_run takes objects, callbacks=[...]")
    for callback in callbacks:
        require_value(isinstance(callback, Callback), "callbacks", callback, "fastdeit.Callback")
    with _same_threads(), guard_run(config, owns_process=False) as guards:
        run_folder = guards.mirror.folder
        world = join_ranks(config)
        guards.supervisor.listen()
        try:
            prepared = prepare_run(config, "deit", world, guards, callbacks)
        except StopAgreed as reason:
            return stop_early(run_folder, world, str(reason))
        if prepared is None:
            finish_mirror(config, guards)
            return on_rank0(lambda: load_json(read_bounded(run_folder.summary, _MAX_BYTES)))
        from fastdeit.library.execution import execute_run
        from fastdeit.run.report import report_failure

        try:
            done = execute_run(*prepared)
        except RunError as error:
            report_failure(prepared[0], error, guards.mirror)
            raise
        finish_mirror(config, guards)
        return done


@names_arguments()
def estimate_memory(
    config: Config,
    *,
    world_size: int = 1,
    num_classes: int = 1000,
    teacher: LiveTeacher | None = None,
    device: torch.device | str = "cuda",
) -> MemoryPlan:
    """Return the memory that a run needs on each GPU, without a GPU: `plan.total` in bytes,
    `plan.parts` by part, `plan.describe()` as the heading of a run has it.

    The training step is made once on tensors without values. world_size: the number of processes,
    one for each GPU. teacher: of `create_teacher`, if it runs live. device: the kind of device,
    "cuda" or "cpu". CUDA's context (about 0.5 GB), NCCL and DALI are not in it. Raises ValueError
    naming the argument.
    """
    require_value(world_size >= 1, "world_size", world_size, "1 or more")
    require_value(num_classes >= 1, "num_classes", num_classes, "1 or more")
    batch_size = config.optim.batch_size
    allowed = f"a multiple of {2 * world_size} on {world_size} processes"
    require(batch_size % (2 * world_size) == 0, "batch_size", batch_size, allowed)
    world = World(0, world_size, 0, world_size, torch.device(device))
    # a timm model draws its weights from torch's global generator
    with torch.random.fork_rng(devices=[]):
        model, _ = build_model(config, [str(row) for row in range(num_classes)])
    planner = build_planner(config, world, model, teacher, num_classes)
    return planner(find_micro_batch(config, world), config.run.grad_checkpointing)


@names_arguments()
def estimate_run(
    config: Config,
    *,
    gpu: str = "h100",
    gpus: int = 8,
    gpus_per_machine: int = 8,
    images: int | None = None,
    recipe: str = "deit",
    price: float | None = None,
    disk_gb_per_s: float | None = None,
) -> Estimate:
    """Return what a run will need, before it starts: `lines`, each with its value, range, unit and
    source (docs/estimate.md), `find(section, name)` for one, `describe()` as JSON values.

    gpu: a name of docs/estimate.md, or "cpu". gpus: of all machines; of "cpu" the processes.
    images: of the training split; None: of the index in data_path, else of the data set that
    `recipe` is for. price: of a GPU for an hour. disk_gb_per_s: 10^9 bytes/s of the disk with the
    checkpoints. No GPU has confirmed the models. Raises ValueError naming the argument.
    """
    devices = make_devices(gpu, find_gpu(gpu), gpus, gpus_per_machine)
    data = count_data(config, images, find_data_set(recipe))
    return estimate_config(config, devices, data, price=price, gb_per_s=disk_gb_per_s)


@names_arguments()
def write_report(
    runs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
) -> None:
    """Write one HTML page on one or several runs, which needs no network (docs/report.md).

    runs: folders of runs, finished or not, or files as their metrics.jsonl; output: the page.
    Needs plotly (the extra `report`). Raises ValueError for what holds no run and without plotly,
    OSError if the page cannot be written.
    """
    several = [runs] if isinstance(runs, str | os.PathLike) else runs
    build.write_report([Path(run) for run in several], Path(output))


@names_arguments()
def compare_runs(runs: Sequence[str | os.PathLike[str]]) -> dict[str, Any]:
    """Return how runs differ as JSON values (docs/compare.md): `groups` of facts with a value for
    each run, None where it is not recorded; `tests`, McNemar's test of each run's heads against the
    first run.

    runs: folders of runs, finished or not, or files as their metrics.jsonl. Raises ValueError for
    what holds no run.
    """
    require_value(len(runs) > 0, "runs", runs, "at least one")
    records = [read_run(Path(run)) for run in runs]
    return differences.compare_runs(records).describe()


@contextlib.contextmanager
def _same_threads() -> Iterator[None]:
    """Restore torch's number of threads, which a run sets for this process, at the end."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def join_ranks(config: Config) -> World:
    """Join the ranks of a run. Raises ValueError as `init_distributed`."""
    return init_distributed(max(config.limits.sections().values()) + _COLLECTIVE_MARGIN_S)


def prepare_run(
    config: Config,
    recipe: str,
    world: World,
    guards: Guards,
    callbacks: Sequence[Callback] = (),
) -> "tuple[Run, list[str]] | None":
    """Return a run at its next step, with notes for the user; None if it was finished before.

    callbacks: added to those of --callback. So far only the lock is written; for a URL also the
    fetched data set, or the working copy of the run. Raises ValueError for what cannot be used, and
    StopAgreed. A collective.
    """
    supervisor, lock, mirror = guards
    folder = mirror.folder
    if is_url(config.run.output_dir):
        open_mirror(mirror, lock, supervisor.proceed)
        supervisor.check_now()
    config = first_on_rank0(lambda: follow_weights(config))
    check_same_everywhere(config)
    on_rank0(lambda: check_same_run(config, folder))
    if on_rank0(lambda: folder.is_finished):
        from fastdeit.run.results import report_finished

        report_finished(config, recipe, world, folder)
        return None
    each_rank(lambda: check_config(config, world.size))
    # raise for what this device does not support, before the images are listed
    each_rank(lambda: pipeline_options(config, world))
    each_rank(lambda: build_deepspeed_config(config, world))
    on_rank0(lambda: check_trackers(config))
    named = each_rank(lambda: load_callbacks(config) if world.rank == 0 else [])
    fetch_weight_files(config)
    fetch_data(config, proceed=supervisor.proceed)
    supervisor.check_now()
    on_rank0(lock.acquire)
    from fastdeit.library.execution import open_run  # DALI and numba import slowly

    run, notes = open_run(config, recipe, world, folder, supervisor, [*named, *callbacks])
    return run, [*notes, *mirror.describe()]


def finish_mirror(config: Config, guards: Guards) -> None:
    """Wait until all of a run that has ended is at its URL, for at most --checkpoint-limit."""
    limit_s = config.limits.sections()["checkpoint"]
    guards.mirror.finish(limit_s, lambda: guards.supervisor.beat("checkpoint", 0))


def stop_early(folder: RunFolder, world: World, reason: str) -> dict[str, Any]:
    """Report that a run stops before its first step; return its summary, as `train_run`."""
    if world.rank == 0:
        Terminal().say(f"stopped before a step ({reason}); the same command continues")
        folder.stop_request.unlink(missing_ok=True)
    return {"stopped": reason, "steps": 0, "skipped": 0}
