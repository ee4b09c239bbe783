"""The files of a run folder that are mirrored, in the order in which they are written."""

import re
from collections.abc import Iterator
from pathlib import Path

from fastdeit.storage.run_folder import RunFolder

MANIFEST = "manifest.json"
CHECKPOINTS = "checkpoints"
_CHECKPOINT_FILE = re.compile(
    rf"{CHECKPOINTS}/(step-\d{{8,16}})/((?:state|manifest)\.json|[a-z_]{{1,32}}\.safetensors)"
)
_FAILURE = re.compile(r"failure-rank\d{1,6}\.json")
_EVENTS = re.compile(r"tensorboard/(?:\w[\w.-]*/)?events\.out\.tfevents\.[\w.-]{1,200}", re.ASCII)
_BUNDLE = re.compile(r"bad-step-\d{1,12}/[a-z_]{1,32}\.(?:json|safetensors)")


def list_settings(folder: RunFolder) -> list[Path]:
    """Return the files without which a checkpoint cannot be resumed: settings, inputs, images and
    logs, of which some may not exist."""
    return [
        folder.config,
        folder.deepspeed_settings,
        folder.inputs,
        folder.train_images,
        folder.metrics,
        folder.quarantine,
        folder.bad_steps,
        folder.spikes,
        folder.rollbacks,
        folder.failures,
        folder.wandb_run,
        folder.attempts,
    ]


def list_results(folder: RunFolder) -> list[Path]:
    """Return the files that follow the checkpoints; summary.json, which marks a finished run, is
    the last. Some may not exist."""
    return [
        folder.model,
        folder.model_ema,
        folder.model_best,
        folder.model_ema_best,
        folder.model_config,
        folder.predictions,
        *folder.failure_files(),
        *sorted(folder.tensorboard.glob("**/events.out.tfevents.*")),
        *sorted(folder.path.glob("bad-step-*/*")),
        folder.report,
        folder.summary,
    ]


def name_of(folder: RunFolder, file: Path) -> str:
    """Return the name of a file at the URL of its run."""
    return file.relative_to(folder.path).as_posix()


def is_mirrored(folder: RunFolder, name: str) -> bool:
    """Return True for the name of a file, outside of checkpoints/, that this module lists. So a
    name from a store leads nowhere else."""
    fixed = {name_of(folder, file) for file in (*list_settings(folder), *list_results(folder))}
    forms = (_FAILURE, _EVENTS, _BUNDLE)
    return name in fixed or any(form.fullmatch(name) for form in forms)


def split_checkpoint(name: str) -> tuple[str, str] | None:
    """Return a checkpoint and the file in it that a name at a URL means; None for another name."""
    found = _CHECKPOINT_FILE.fullmatch(name)
    return (found[1], found[2]) if found else None


def group_checkpoints(names: Iterator[str]) -> dict[str, list[str]]:
    """Return the names of files by checkpoint, the newest checkpoint first."""
    groups: dict[str, list[str]] = {}
    for name in names:
        found = split_checkpoint(name)
        if found:
            groups.setdefault(found[0], []).append(name)
    steps = sorted(groups, key=lambda step: int(step.removeprefix("step-")), reverse=True)
    return {step: groups[step] for step in steps}
