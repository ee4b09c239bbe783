"""The settings that a command may change if its run folder holds a run, and the comparison of
settings. docs/resume.md has the table."""

import dataclasses
import os
from collections.abc import Set
from pathlib import Path
from typing import Any

from fastdeit.config.file import config_from_dict, read_config_file
from fastdeit.config.parse import join_values, name_flag
from fastdeit.config.schema import Config
from fastdeit.config.schema.distill import DistillConfig
from fastdeit.config.schema.run import CheckpointConfig, HealthConfig, LimitConfig
from fastdeit.config.schema.tracking import TrackingConfig
from fastdeit.storage.run_folder import RunFolder


def _fields_of(section: type) -> set[str]:
    return {field.name for field in dataclasses.fields(section)}


FORM = frozenset(
    "output_dir kernels zero_stage grad_checkpointing offload_optimizer deepspeed_config "
    "overlap_reduce log_steps data_cache "
    "stop_after_steps time_limit num_workers prefetch read_ahead micro_batch augment_device "
    "compile cuda_graph teacher_batch teacher_benchmark".split()
).union(
    _fields_of(CheckpointConfig) - {"resume"},
    *map(_fields_of, (HealthConfig, LimitConfig, TrackingConfig)),
)
"""The settings of how the work is done, and for how long: they decide neither samples nor
results."""

SOURCES = frozenset(
    "data_path augment_backend decoder finetune teacher_model teacher_path "
    "pretrained_teacher teacher_mean teacher_std teacher_input_size cache".split()
)
"""The settings of where an input comes from, or what reads it: the input itself must stay the
same."""

LATER = frozenset(
    "bad_images index_check cache_miss eval_input_size eval_crop_ratio eval_epochs resume".split()
)
"""The settings that take effect from the resumed step on."""

ARCHITECTURE = frozenset(
    "model patch_size embed_dim depth num_heads qkv_bias init_values registers".split()
)
"""The settings that the weights of --finetune decide if --model is empty."""

MAY_CHANGE_ON_RESUME = FORM | SOURCES | LATER
"""The fields of `Config` that may differ if a run is resumed or replayed; the others are fixed."""

MAY_CHANGE_WHEN_FINISHED = FORM
"""The fields that may differ from those of a finished run, which then shows its results."""

_WEIGHTS = ("finetune", "teacher_path")
_PATHS = (*_WEIGHTS, "data_path", "cache", "resume")


def read_settings(path: Path, flag: str) -> Config:
    """Return the settings in a run's config.yaml; a field that an older version did not write has
    its default. flag: the flag that named the run, for the errors. Raises ValueError, with a
    message of one line, and OSError."""
    return config_from_dict(Config(), read_config_file(path, flag), f"{flag}: {path}")


def pick_settings(config: Config, fields: Set[str]) -> dict[str, dict[str, Any]]:
    """Return the sections of `Config.to_dict` with these fields alone."""
    return {
        section: {name: value for name, value in part.items() if name in fields}
        for section, part in config.to_dict().items()
    }


def list_values(config: Config) -> dict[str, Any]:
    """Return the value of every field, by name; no two sections have a field of the same name."""
    return {name: part[name] for part in config.to_dict().values() for name in part}


def list_changes(then: Config, now: Config, may_change: Set[str]) -> list[str]:
    """Return a line for each setting that differs now, except those that may change."""
    before = list_values(then)
    start = _find_start(then.run.output_dir, now.run.output_dir)
    lines = []
    for name, value in list_values(now).items():
        if name not in may_change and not _is_same(name, before[name], value, start):
            lines.append(f"{name_flag(name)} was {before[name]!r}, now {value!r}")
    return lines


def _find_start(recorded: str, folder: str) -> Path:
    """Return the working directory of a run's last start: the folder in which the recorded
    --output-dir is the run folder; the present directory if there is none."""
    named = Path(os.path.normpath(recorded)).parts
    here = Path(os.path.abspath(folder)).parts
    is_below = here[-len(named) :] == named
    return Path(*here[: -len(named)]) if is_below else Path()


def find_paths(then: Config, now: Config) -> Config:
    """Return the settings `now`, in which a relative path that does not exist here is replaced by
    that below the directory where the run was started, if it exists there. then: the settings that
    the run recorded."""
    start = _find_start(then.run.output_dir, now.run.output_dir)
    sections = {
        section: {name: _find(part[name], start) for name in part.keys() & set(_PATHS)}
        for section, part in now.to_dict().items()
    }
    sections["distill"]["teacher_path"] = _find_teachers(now.distill, start)
    return now.replace(**sections)


def _find_teachers(distill: DistillConfig, start: Path) -> str:
    """Return --teacher-path as `find_paths` does; it may have several paths."""
    if not distill.teacher_path:
        return ""
    paths = [_find(path, start) for _, path in distill.teachers]
    return join_values(paths) if len(paths) > 1 else paths[0]


def _find(path: str, start: Path) -> str:
    # not Path.exists, which raises OSError for an address of above 4096 bytes
    is_there = path and not os.path.exists(path) and os.path.exists(start / path)
    return str(start / path) if is_there else path


def _is_same(name: str, one: Any, other: Any, start: Path) -> bool:
    """Return True if a setting of a run that was started in the folder `start` is the same now."""
    if name not in _PATHS or not (one and other):
        return bool(one == other)
    return _locate(name, other) in (_locate(name, one), _locate(name, str(start / one)))


def _locate(name: str, path: str) -> Path:
    """Return the absolute path that a setting names; for weights in a run folder, their file."""
    place = Path(path).resolve()
    return RunFolder(place).weights() if name in _WEIGHTS and os.path.isdir(place) else place
