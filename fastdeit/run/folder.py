"""Opening the folder of a run: settings, images, and logs as they were at its step."""

import json
import time
from collections.abc import Callable

import torch.distributed as dist
import yaml

from fastdeit.checkpoint.store import remove_temporary
from fastdeit.config.changes import MAY_CHANGE_ON_RESUME, pick_settings
from fastdeit.data.snapshot import keep_images
from fastdeit.display.text import printable
from fastdeit.distributed.errors import RunError
from fastdeit.distributed.versions import versions
from fastdeit.models.build import precision
from fastdeit.reliability.failures import format_failure, take_failures
from fastdeit.run.identity import code_digest, name_device
from fastdeit.run.inputs import name_teacher_output
from fastdeit.run.resume import truncate_logs
from fastdeit.run.state import Run
from fastdeit.storage.atomic import atomic_write_text
from fastdeit.storage.attempts import Attempt, add_attempt
from fastdeit.training.build import build_deepspeed_config


class FolderError(RunError):
    """Error if the run folder cannot be written; raised on every rank."""

    heard_by_all = True


def open_folder(run: Run) -> list[str]:
    """Write everything that a run writes before its first step; return notes for the user.

    Raise FolderError. A collective.
    """
    notes: list[str] = []
    quarantine = run.data.quarantine
    cached_teacher = run.data.cached_teacher
    quarantine.step = run.trainer.step
    if cached_teacher and cached_teacher.bad_images:
        quarantine.exclude(cached_teacher.bad_images)
    write_on_rank0(run, lambda: notes.extend(_write_folder(run)))
    run.health.begin(run.trainer.step)
    quarantine.write()
    dist.barrier()
    return notes


def write_on_rank0(run: Run, write: Callable[[], None]) -> None:
    """Call `write` on rank 0. Raise FolderError on every rank if the disk refuses."""
    refusal = [""]
    if run.world.rank == 0:
        try:
            write()
        except OSError as error:
            refusal = [str(error)]
    dist.broadcast_object_list(refusal)
    if refusal[0]:
        hint = "the same command resumes the run once that is fixed"
        raise FolderError(f"--output-dir: {run.folder}: {refusal[0]}; {hint}")


def _write_folder(run: Run) -> list[str]:
    """Write the folder's first files; return a note on the failure of the last attempt, if any."""
    folder = run.folder
    notes = [format_failure(failure, folder) for failure in take_failures(folder)[:1]]
    remove_temporary(folder.checkpoints)
    atomic_write_text(folder.config, _describe_config(run))
    atomic_write_text(folder.inputs, json.dumps(run.inputs, indent=1))
    settings = build_deepspeed_config(run.config, run.world)
    atomic_write_text(folder.deepspeed_settings, json.dumps(settings, indent=1))
    if not folder.train_images.is_file():
        keep_images(run.data.train_index, folder.train_images)
    add_attempt(folder, _describe_attempt(run))
    truncate_logs(run, run.trainer.step)
    return notes


def _describe_config(run: Run) -> str:
    """Return config.yaml: the settings, below comments with the plan in one line and the runs from
    whose checkpoints this one begins, the oldest first."""
    lines = [f"plan: {run.data.plan.spec.describe()}"]
    for origin in (run.inputs["initial weights"] or {}).get("lineage", []):
        changed = "; ".join(origin["changed"]) or "the same settings"
        lines.append(f"begins from {origin['path']} (sha256 {origin['sha256'][:12]}): {changed}")
    comments = "".join(f"# {printable(line)}\n" for line in lines)
    return comments + yaml.safe_dump(run.config.to_dict(), sort_keys=False)


def _describe_attempt(run: Run) -> Attempt:
    options = run.data.train_loader.options
    return Attempt(
        step=run.trainer.step,
        settings=pick_settings(run.config, MAY_CHANGE_ON_RESUME),
        world_size=run.world.size,
        micro_batch=options.batch_size,
        zero_stage=run.trainer.engine.zero_optimization_stage(),
        offload_optimizer=run.config.run.offload_optimizer,
        precision=precision(run.config, run.world)[0],
        augment_backend=options.backend,
        decoder=options.decoder,
        left_out=tuple(run.data.quarantine.rows.tolist()),
        teacher_output=name_teacher_output(run.inputs),
        alternating_pairs=False,
        recipe=run.recipe,
        time=time.time(),
        device=name_device(run.world.device),
        code=code_digest(),
        versions=versions(),
    )
