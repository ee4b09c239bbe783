"""The identity of a run: settings and fingerprints that must not change when it is resumed, and
that must be equal on all ranks."""

import dataclasses
import functools
import hashlib
import os
import platform
import socket
from importlib import metadata
from pathlib import Path
from typing import Any

from nvidia import dali

import fastdeit
from fastdeit.config.file import read_config_file
from fastdeit.config.schema import CheckpointConfig, Config, HealthConfig, LimitConfig
from fastdeit.data.index import Index
from fastdeit.distributed.collectives import on_every_rank
from fastdeit.plan.plan import Plan
from fastdeit.storage.run_folder import RunFolder

MAY_CHANGE_ON_RESUME = {
    "run": {
        "output_dir",
        "kernels",
        "zero_stage",
        "offload_optimizer",
        "deepspeed_config",
        "eval_epochs",
        "log_steps",
        "stop_after_steps",
        "time_limit",
    },
    # the backend and the decoder that are used are compared as fingerprints
    "augment": {"augment_backend"},
    "data": {
        "num_workers",
        "prefetch",
        "decoder",
        "data_path",
        "bad_images",
        "eval_input_size",
        "eval_crop_ratio",
    },
    "optim": {"micro_batch"},
    "distill": {"teacher_path", "cache", "cache_miss"},
    "checkpoint": {field.name for field in dataclasses.fields(CheckpointConfig)},
    "health": {field.name for field in dataclasses.fields(HealthConfig)},
    "limits": {field.name for field in dataclasses.fields(LimitConfig)},
}
"""Fields that may differ when a run is resumed: they change neither samples nor maths."""


def check_same_run(config: Config, folder: RunFolder) -> None:
    """Raise ValueError if the run folder cannot be written, or holds a run with other settings."""
    path = folder.path
    if path.exists() and not path.is_dir():
        raise ValueError(f"--output-dir must be a folder or a new name (got the file {path})")
    above = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not (above.is_dir() and os.access(above, os.W_OK)):
        raise ValueError(
            f"--output-dir must be in a folder that can be written "
            f"(got {path}, which cannot be written below {above})"
        )
    if folder.config.is_file():
        check_same_settings(config, folder)


def check_same_settings(config: Config, folder: RunFolder) -> None:
    """Raise ValueError naming the settings in which the run in a folder differs from `config`."""
    then = _fixed_settings(read_config_file(folder.config, "--output-dir"))
    now = _fixed_settings(config.to_dict())
    changed = [
        f"{name} {then.get(name)!r} -> {now[name]!r}" for name in now if then.get(name) != now[name]
    ]
    if changed:
        raise ValueError(
            f"--output-dir must be another folder: {folder} holds a run with other settings: "
            f"{'; '.join(changed)}"
        )


def _fixed_settings(values: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the settings that must not change, by `section.name`."""
    fixed = {}
    for section, part in values.items():
        for name, value in part.items():
            if name not in MAY_CHANGE_ON_RESUME.get(section, ()):
                fixed[f"{section}.{name}"] = value
    return fixed


def check_same_everywhere(config: Config) -> None:
    """Raise ValueError on every rank, naming what differs, unless all have the settings, code and
    versions of rank 0. A collective."""
    _compare_ranks(_describe_process(config))


def _describe_process(config: Config) -> dict[str, Any]:
    """Return the settings by `section.name`, the hash of the code, and the versions."""
    facts: dict[str, Any] = {}
    for section, part in config.to_dict().items():
        facts |= {f"{section}.{name}": value for name, value in part.items()}
    return facts | {"code": code_digest()} | versions()


def check_same_images(train_index: Index, val_index: Index, pixels: str) -> None:
    """Raise ValueError on every rank unless all read the images of rank 0, and in the same way;
    machines may have different copies.

    pixels: backend and decoder, which `auto` chooses by the machine. A collective.
    """
    facts: dict[str, Any] = {"augmentation": pixels}
    for split, index in (("training", train_index), ("validation", val_index)):
        facts[f"number of {split} images"] = len(index)
        facts[f"names and sizes of {split} images"] = index.fingerprint()
    _compare_ranks(facts)


def _compare_ranks(facts: dict[str, Any]) -> None:
    (_, ours), *others = on_every_rank(lambda: (socket.gethostname(), facts))
    for rank, (host, theirs) in enumerate(others, 1):
        changed = [
            f"{name}: {ours[name]!r}, there {theirs[name]!r}"
            for name in ours
            if ours[name] != theirs[name]
        ]
        if changed:
            raise ValueError(f"rank {rank} ({host}) differs from rank 0 in {'; '.join(changed)}")


@functools.cache
def code_digest() -> str:
    """Return a hash of every Python file of this package, by name and content."""
    root = Path(fastdeit.__file__).parent
    digest = hashlib.sha256()
    # rglob does not follow the link `kernels`
    for path in sorted({*root.rglob("*.py"), *(root / "kernels").glob("*.py")}):
        digest.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def fingerprints(plan: Plan, index: Index, batch_size: int, pixels: str) -> dict[str, Any]:
    """Return everything that determines the samples of a step and their pixels (backend and
    decoder); every checkpoint holds it."""
    return {
        "plan": plan.fingerprint(),
        "data set": index.fingerprint(),
        "batch size": batch_size,
        "augmentation": pixels,
    }


def check_same_samples(state: dict[str, Any], now: dict[str, Any], path: Path) -> None:
    """Raise ValueError naming what differs between a checkpoint's `fingerprints` and this run's."""
    for name, value in now.items():
        if state.get(name) != value:
            raise ValueError(
                f"{path}: was saved with another {name}: {state.get(name)}, now {value}"
            )


@functools.cache
def versions() -> dict[str, str]:
    """Return the version of Python and of every package that can change a result.

    DALI's comes from the module: its package has another name for each CUDA version.
    """
    found = {"python": platform.python_version(), "dali": dali.__version__}
    for name in ("fastdeit", "torch", "timm", "deepspeed", "triton", "numpy"):
        found[name] = _installed_version(name)
    return found


def _installed_version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"
