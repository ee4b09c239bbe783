"""What makes a run the same run: the settings and fingerprints that must not change when it goes
on."""

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
    "augment": {"augment_backend"},  # what it comes to is among the fingerprints, as is the decoder
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
"""Fields that may differ when a run goes on: they change neither samples nor maths."""


def check_same_run(config: Config, folder: RunFolder) -> None:
    """Raises ValueError naming the settings in which a run folder that is in use differs, or if it
    cannot be written."""
    if folder.path.exists() and not folder.path.is_dir():
        raise ValueError(f"--output-dir: {folder} is a file, allowed is a folder or a new name")
    above = next(
        place for place in (folder.path, *folder.path.absolute().parents) if place.exists()
    )
    if not (above.is_dir() and os.access(above, os.W_OK)):
        raise ValueError(
            f"--output-dir: {folder} cannot be written below {above}, allowed is a place that can"
        )
    if folder.config.is_file():
        check_same_settings(config, folder)


def check_same_settings(config: Config, folder: RunFolder) -> None:
    """Raises ValueError naming the settings in which the run that a folder holds differs from
    `config`."""
    then = _bound(read_config_file(folder.config, "--output-dir"))
    now = _bound(config.to_dict())
    changed = [
        f"{name} {then.get(name)!r} -> {now[name]!r}" for name in now if then.get(name) != now[name]
    ]
    if changed:
        raise ValueError(
            f"--output-dir: {folder} holds a run with other settings: {'; '.join(changed)}; name another folder"
        )


def _bound(values: dict[str, dict[str, Any]]) -> dict[str, Any]:
    fields = (
        (section, name, value) for section, part in values.items() for name, value in part.items()
    )
    return {
        f"{section}.{name}": value
        for section, name, value in fields
        if name not in MAY_CHANGE_ON_RESUME.get(section, ())
    }


def check_same_everywhere(config: Config) -> None:
    """Raises ValueError on every rank, naming what differs, unless all have the settings, code and
    versions of rank 0.

    A collective.
    """
    _compare_ranks(_identity(config))


def check_same_images(train_index: Index, val_index: Index, pixels: str) -> None:
    """Raises ValueError on every rank unless all read the images of rank 0, and as it does;
    machines may have other copies.

    pixels: backend and decoder, which `auto` takes by what a machine has. A collective.
    """
    facts: dict[str, Any] = {"augmentation": pixels}
    for split, index in (("training", train_index), ("validation", val_index)):
        facts |= {
            f"number of {split} images": len(index),
            f"names and sizes of {split} images": index.fingerprint(),
        }
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


def _identity(config: Config) -> dict[str, Any]:
    settings = {
        f"{section}.{name}": value
        for section, part in config.to_dict().items()
        for name, value in part.items()
    }
    return settings | {"code": code_digest()} | versions()


@functools.cache
def code_digest() -> str:
    """Of every Python file of this package, by name and content."""
    root = Path(fastdeit.__file__).parent
    digest = hashlib.sha256()
    for path in sorted({*root.rglob("*.py"), *(root / "kernels").glob("*.py")}):
        digest.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def fingerprints(plan: Plan, index: Index, batch_size: int, pixels: str) -> dict[str, Any]:
    """What decides the samples that a step holds, and their pixels (backend and decoder); kept in
    every checkpoint."""
    return {
        "plan": plan.fingerprint(),
        "data set": index.fingerprint(),
        "batch size": batch_size,
        "augmentation": pixels,
    }


def check_same_samples(state: dict[str, Any], now: dict[str, Any], path: Path) -> None:
    """Raises ValueError naming what differs between a checkpoint's `fingerprints` and those of this
    run."""
    for name, value in now.items():
        if state.get(name) != value:
            raise ValueError(
                f"{path}: was saved with another {name}: {state.get(name)}, now {value}"
            )


@functools.cache
def versions() -> dict[str, str]:
    """Give the version of Python, and of every package that can change a number.

    DALI is asked itself: each CUDA has a package of it under another name.
    """
    names = ("fastdeit", "torch", "timm", "deepspeed", "triton", "numpy")
    return {"python": platform.python_version(), "dali": dali.__version__} | {
        name: _installed(name) for name in names
    }


def _installed(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"
