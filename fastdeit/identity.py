"""What makes a run the same run: the settings and fingerprints that must not change when it goes on."""

import functools
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from fastdeit.config import Config
from fastdeit.data.index import Index
from fastdeit.plan import Plan

_FREE = {
    "run": {
        "output_dir",
        "resume",
        "zero_stage",
        "save_steps",
        "keep_checkpoints",
        "eval_epochs",
        "log_steps",
        "stop_after_steps",
    },
    "augment": {"augment_backend"},  # what it comes to is among the fingerprints, as is the decoder
    "data": {"num_workers", "prefetch", "decoder", "data_path", "bad_images", "eval_input_size", "eval_crop_ratio"},
    "optim": {"micro_batch"},
    "distill": {"teacher_path"},
}
"""Fields that may differ when a run goes on: they change neither samples nor maths."""


def check_same_run(config: Config, folder: Path) -> None:
    """Raises ValueError naming the settings in which a run folder that is in use differs, or if it cannot be written."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output-dir: {folder} is a file, allowed is a folder or a new name")
    above = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not (above.is_dir() and os.access(above, os.W_OK)):
        raise ValueError(f"--output-dir: {folder} cannot be written below {above}, allowed is a place that can")
    if not (folder / "config.yaml").is_file():
        return
    then = _bound(yaml.safe_load((folder / "config.yaml").read_text()))
    now = _bound(config.to_dict())
    changed = [f"{name} {then.get(name)!r} -> {now[name]!r}" for name in now if then.get(name) != now[name]]
    if changed:
        raise ValueError(f"--output-dir: {folder} holds a run with other settings: {'; '.join(changed)}; name another folder")


def _bound(values: dict[str, dict[str, Any]]) -> dict[str, Any]:
    fields = ((section, name, value) for section, part in values.items() for name, value in part.items())
    return {f"{section}.{name}": value for section, name, value in fields if name not in _FREE.get(section, ())}


def fingerprints(plan: Plan, index: Index, batch_size: int, pixels: str) -> dict[str, Any]:
    """What decides the samples that a step holds, and their pixels (backend and decoder); kept in every checkpoint."""
    return {
        "plan": plan.fingerprint(),
        "data set": index.fingerprint(),
        "batch size": batch_size,
        "augmentation": pixels,
    }


def check_same_samples(state: dict[str, Any], now: dict[str, Any], path: Path) -> None:
    """Raises ValueError naming what differs between a checkpoint's `fingerprints` and those of this run."""
    for name, value in now.items():
        if state.get(name) != value:
            raise ValueError(f"{path}: was saved with another {name}: {state.get(name)}, now {value}")


@functools.cache
def versions() -> dict[str, str]:
    """Of Python and of every package that can change a number."""
    names = ("fastdeit", "torch", "timm", "deepspeed", "nvidia-dali-cuda120", "triton", "numpy")
    installed = {found.metadata["Name"].lower(): found.version for found in metadata.distributions() if found.metadata["Name"]}
    return {"python": platform.python_version()} | {name: installed.get(name, "") for name in names}
