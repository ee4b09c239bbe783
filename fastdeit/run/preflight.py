"""Checks of a `Config` before any work: sizes that do not divide, unknown models, missing files."""

import os
import resource
from collections.abc import Sequence
from pathlib import Path

import timm

from fastdeit.checkpoint.files import read_manifest
from fastdeit.config.changes import read_settings
from fastdeit.config.flags import format_train_command
from fastdeit.config.parse import ARCHIVES, is_callable, name_flag, require
from fastdeit.config.recipes import RECIPES, find_recipe
from fastdeit.config.recipes.follow import precede_with_teacher
from fastdeit.config.schema import Config
from fastdeit.data.build import find_root
from fastdeit.data.formats.detect import find_split
from fastdeit.data.index import Index
from fastdeit.distributed.collectives import first_on_rank0
from fastdeit.distributed.environment import is_alone
from fastdeit.distributed.world import World
from fastdeit.models.build import check_model
from fastdeit.models.sizes import suggest_names
from fastdeit.models.sources import (
    FORMS,
    fetch_weights,
    find_remote,
    find_run,
    locate_weights,
    name_revision,
)
from fastdeit.storage.run_folder import RunFolder
from fastdeit.storage.urls import is_url

_FORMS = f"an existing file{FORMS.removeprefix('a file')}"
_FEW_STEPS = 4
_NAMED = 3  # excluded images in the heading
_OPEN_FILES = 1024
"""The usual limit of Linux; shards leave 512 of them to everything else."""
_SHARED_MEMORY = Path("/dev/shm")
_SHARED_BYTES = 2**30
"""The size that NCCL's documentation asks for (Troubleshooting, "Shared memory"); a container has
64 MB."""


def check_config(config: Config, world_size: int, *, trains: bool = True) -> None:
    """Raise ValueError naming the first setting that cannot work on `world_size` processes, or
    everything that the disk lacks.

    trains: False if only the teacher runs, for a cache: then no weights to start from are needed.
    """
    _check_batch(config, world_size)
    if config.model.model:
        check_model(config)
    faults: list[Exception] = []
    starts = (_check_resume, _check_finetune) if trains else ()
    for check in (_check_data, *starts, _check_teacher):
        try:
            check(config)
        except (ValueError, OSError) as fault:
            faults.append(fault)
    if len(faults) == 1:
        raise faults[0]
    if faults:
        raise ValueError("; ".join(map(str, faults)))


def note_limits(world: World) -> list[str]:
    """Return notes on limits of this machine that are below what a run may need."""
    notes = []
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY and most < _OPEN_FILES:
        notes.append(f"a process may open {most} files; ulimit -n {_OPEN_FILES} or more is safe")
    if world.device.type == "cuda" and world.local_size > 1 and _SHARED_MEMORY.is_dir():
        space = os.statvfs(_SHARED_MEMORY)
        size = space.f_frsize * space.f_blocks
        if size < _SHARED_BYTES:
            need = "NCCL may need 1 GiB between GPUs (docker run --shm-size=1g)"
            notes.append(f"{_SHARED_MEMORY} has {size / 2**20:.0f} MiB; {need}")
    return [f"{note}; fastdeit doctor checks the rest of this machine" for note in notes]


def _check_batch(config: Config, world_size: int) -> None:
    size = config.optim.batch_size
    share = 2 * world_size
    allowed = f"a multiple of {share} on {world_size} processes"
    require(size % share == 0, "batch_size", size, allowed)
    per_rank = size // world_size
    micro_batch = config.optim.micro_batch or per_rank
    allowed = f"a divisor of {per_rank}, a process's share of the batch"
    require(per_rank % micro_batch == 0, "micro_batch", micro_batch, allowed)


def check_batch_fits(config: Config, world_size: int, images: int) -> None:
    """Raise ValueError, naming a batch size that works, if the batch is larger than the number of
    training images."""
    size = config.optim.batch_size
    least = world_size * (config.optim.micro_batch or 2)
    advice = "take fewer processes" if least > images else _advise_batch(least, images)
    if size > images:
        raise ValueError(
            f"--batch-size must be at most {images}, the number of training images (got {size}); "
            f"{advice}"
        )


def _advise_batch(least: int, images: int) -> str:
    """Return the advice to take `least` times a power of two that leaves several steps an epoch."""
    parts = max(1, images // _FEW_STEPS // least)
    return f"--batch-size {least * 2 ** (parts.bit_length() - 1)} works"


def _check_data(config: Config) -> None:
    """Raise ValueError unless --data-path has a training split, or is to be written."""
    data = config.data
    path = data.data_path
    require(bool(path), "data_path", path, "the folder of a data set, see docs/data.md")
    if data.data_set != "digits" and not is_url(path):  # it is fetched later
        require(Path(path).is_dir(), "data_path", path, "an existing folder")
        find_split(find_root(config), data.train_split)


def _check_resume(config: Config) -> None:
    """Raise ValueError if --resume is no checkpoint; a run that has begun resumes from its own."""
    named = config.checkpoint.resume
    if named and not RunFolder.of(config.run.output_dir).config.is_file():
        _refuse_url("resume", named)
        read_manifest(Path(named))
        _check_trained(config, named)


def _check_trained(config: Config, checkpoint: str) -> None:
    """Raise ValueError if the run that saved a checkpoint trained other weights: the checkpoint has
    only the optimizer's state of those."""
    parent = find_run(checkpoint)
    if parent is not None:
        then = read_settings(parent.config, "--resume").model.trainable
        now = config.model.trainable
        allowed = f"{then} as in {parent}; --finetune {checkpoint} begins with its weights alone"
        require(now == then, "trainable", now, allowed)


def _check_finetune(config: Config) -> None:
    """Raise ValueError if --finetune names no file, or is empty where the model is that of its
    weights."""
    path = config.model.finetune
    if path or not config.model.model:
        _check_weights("finetune", path, _hint_at_start(config))


def _hint_at_start(config: Config) -> str:
    path = config.model.finetune
    recipe = Path(path).name
    if recipe not in RECIPES:
        return f"{_FORMS}, with the weights to start from"
    data = {"data_path": config.data.data_path}
    start = find_recipe(recipe).replace(data=data, run={"output_dir": path})
    command = format_train_command(start, recipe, alone=is_alone())
    return f"an existing file; train it first: {command}"


def _check_teacher(config: Config) -> None:
    distill = config.distill
    if distill.cache:
        is_folder = Path(distill.cache).is_dir()
        allowed = "an existing folder that fastdeit cache build has written"
        require(is_folder, "cache", distill.cache, allowed)
    if distill.needs_teacher:
        for name, source in distill.teachers:
            _check_one_teacher(config, name, source)


def _check_one_teacher(config: Config, name: str, source: str) -> None:
    if config.distill.pretrained_teacher:
        allowed = f"a timm model with pretrained weights{suggest_names(name)}"
        require(timm.is_model_pretrained(name), "teacher_model", name, allowed)
    if name in ARCHIVES:
        _refuse_url("teacher_path", source)
    if not is_callable(name):
        _check_weights("teacher_path", source, _hint_at_teacher(config, source))


def _hint_at_teacher(config: Config, path: str) -> str:
    if "," in path and len(config.distill.teachers) == 1:
        return "an existing file; for several teachers, --teacher-model has as many names"
    recipe = Path(path).name
    if recipe.endswith("_teacher") and recipe in RECIPES:
        teacher = precede_with_teacher(config, recipe, path)
        command = format_train_command(teacher, recipe, alone=is_alone())
        return f"an existing file; train it first: {command}"
    named = "an existing file with the teacher's weights, hf-hub:OWNER/NAME or https://..."
    return f"{named}; or use --pretrained-teacher, or --distillation-type none"


def _check_weights(flag: str, path: str, allowed: str) -> None:
    """Raise ValueError unless a source names weights; those of a network are fetched later."""
    try:
        if find_remote(path):
            return
    except ValueError as error:
        raise ValueError(f"{name_flag(flag)}: {error}") from error
    beside = RunFolder(Path(path).parent).weights()
    if path and beside.is_file():
        allowed = f"an existing file, such as {beside}"
    require(bool(path) and locate_weights(path).is_file(), flag, path, allowed)


def fetch_weight_files(config: Config, *, trains: bool = True) -> None:
    """Download the weights that the settings name by an address, a repository or a timm model,
    once on each machine, unless a cache has them. Raises ValueError. A collective.

    trains: as in `check_config`.
    """
    sources = [("--finetune", config.model.finetune)] if trains else []
    if config.distill.needs_teacher:
        named = "--pretrained-teacher" if config.distill.pretrained_teacher else "--teacher-path"
        sources += [(named, source) for _, source in config.distill.teachers]
    first_on_rank0(lambda: _fetch(sources))


def _fetch(sources: Sequence[tuple[str, str]]) -> None:
    for flag, source in sources:
        try:
            if find_remote(source):
                fetch_weights(source)
        except ValueError as error:
            raise ValueError(f"{flag}: {error}") from error


def _refuse_url(flag: str, path: str) -> None:
    """Raise ValueError for an address, which deit and timm download."""
    name = path.rpartition("/")[2]
    local = f"a local file: download it, then give {name_flag(flag)} {name}"
    require("://" not in path, flag, path, local)


def note_weights(config: Config) -> list[str]:
    """Return notes on weights of repositories and of runs that have not finished."""
    named = [("finetune", config.model.finetune)]
    if config.distill.needs_teacher:
        named += [("teacher-path", source) for _, source in config.distill.teachers]
    notes = []
    for flag, path in named:
        if path and (revision := name_revision(path)) != path:
            notes.append(f"--{flag}: the weights are {revision}")
        other = RunFolder(locate_weights(path).parent)
        if path and other.checkpoints.is_dir() and not other.is_finished:
            fact = f"the run in {other} has not finished, and its weights change"
            notes.append(f"--{flag}: {fact} with every checkpoint")
    return notes


def note_damaged(index: Index) -> list[str]:
    """Return a note on the damaged images that the index excludes, if there are any."""
    damaged = index.excluded
    if not damaged:
        return []
    more = f" and {len(damaged) - _NAMED} more" if len(damaged) > _NAMED else ""
    named = "; ".join(damaged[:_NAMED])
    return [f"{len(damaged)} images of {index.split} excluded: {named}{more}"]
