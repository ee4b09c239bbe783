"""What a run leaves in its folder: before its first step what it is, at its end what came of it."""

import dataclasses
import json
from collections.abc import Callable

import torch
import torch.distributed as dist
import yaml
from safetensors.torch import save

from fastdeit.checkpoint.store import sweep
from fastdeit.data.build import build_train_loader
from fastdeit.data.snapshot import keep_images
from fastdeit.distributed.errors import RunError
from fastdeit.kernels.mix import mix
from fastdeit.models.build import precision, weight_metadata
from fastdeit.reliability.failures import format_failure, take_failures
from fastdeit.run.attempts import Attempt, add_attempt
from fastdeit.run.results import show_summary
from fastdeit.run.resume import truncate_logs
from fastdeit.run.state import Run
from fastdeit.storage.atomic import atomic_open, atomic_write_text
from fastdeit.storage.jsonl import read_metrics
from fastdeit.training.build import build_deepspeed_config

Weights = dict[str, torch.Tensor]


class FolderError(RunError):
    """The run folder cannot be written; raised on every rank."""

    heard_by_all = True


def open_folder(run: Run) -> None:
    """Settings, images, logs: what a run writes before its first step. A collective; raises
    FolderError."""
    run.quarantine.step = run.trainer.step
    if run.cached_teacher and run.cached_teacher.bad_images:
        run.quarantine.exclude(run.cached_teacher.bad_images)
    _on_disk(run, lambda: _write_folder(run))
    run.health.begin(run.trainer.step)
    run.quarantine.write()
    dist.barrier()


def _on_disk(run: Run, write: Callable[[], None]) -> None:
    """`write()` on rank 0. Raises FolderError on every rank if the disk refuses."""
    refusal = [""]
    if run.world.rank == 0:
        try:
            write()
        except OSError as error:
            refusal = [str(error)]
    dist.broadcast_object_list(refusal)
    if refusal[0]:
        raise FolderError(
            f"--output-dir: {run.folder}: {refusal[0]}; the same command goes on when that is put right"
        )


def _write_folder(run: Run) -> None:
    run.notes += [format_failure(failure, run.folder) for failure in take_failures(run.folder)[:1]]
    sweep(run.folder.checkpoints)
    text = yaml.safe_dump(run.config.to_dict(), sort_keys=False)
    atomic_write_text(run.folder.config, text)
    settings = build_deepspeed_config(run.config, run.world)
    atomic_write_text(run.folder.deepspeed_settings, json.dumps(settings, indent=1))
    if not run.folder.train_images.is_file():
        keep_images(run.train_index, run.folder.train_images)
    add_attempt(run.folder, _attempt(run))
    truncate_logs(run, run.trainer.step)


def _attempt(run: Run) -> Attempt:
    options = run.train_loader.options
    return Attempt(
        step=run.trainer.step,
        world_size=run.world.size,
        micro_batch=options.batch_size,
        zero_stage=run.trainer.engine.zero_optimization_stage(),
        offload_optimizer=run.config.run.offload_optimizer,
        precision=precision(run.config, run.world)[0],
        augment_backend=options.backend,
        decoder=options.decoder,
        left_out=tuple(run.quarantine.rows.tolist()),
    )


def write_outcome(run: Run, results: dict[str, float]) -> None:
    """Weights under timm's names, the picture, the table of `results`. A collective; raises
    FolderError."""
    run.supervisor.beat("checkpoint", run.trainer.step)
    weights, average = run.trainer.state.weights(), run.trainer.state.ema_weights()
    _on_disk(run, lambda: _write_results(run, results, weights, average))


def _write_results(
    run: Run, results: dict[str, float], weights: Weights, average: Weights | None
) -> None:
    about = weight_metadata(run.config, run.train_index.classes, run.trainer.state.model)
    for path, tensors in {run.folder.student: weights, run.folder.student_ema: average}.items():
        if tensors is not None:
            with atomic_open(path) as file:
                file.write(save(tensors, about))
    _save_report(run)
    summary = {"results": results, "steps": run.trainer.step, "skipped": run.trainer.state.skipped}
    atomic_write_text(
        run.folder.summary, json.dumps(summary, indent=1)
    )  # the last file: its presence says that all went well
    show_summary(run.console, run.config, run.recipe, run.folder, results)


def _save_report(run: Run) -> None:
    from fastdeit.display.figures import save_report  # matplotlib imports slowly

    alone = dataclasses.replace(run.world, rank=0, size=1, local_size=1)
    few = run.config.replace(
        optim={"batch_size": min(16, len(run.train_index) // 2 * 2), "micro_batch": 0}
    )
    loader = build_train_loader(few, alone, run.train_index, run.plan, (), run.quarantine)
    batch = next(loader.epoch(0))
    loader.close()
    images = mix(batch.images, batch.lam, batch.box)
    names = [run.train_index.classes[label] for label in batch.labels.tolist()]
    titles = [
        name if lam == 1 else f"{lam:.2f} {name} + {1 - lam:.2f} {names[row ^ 1]}"
        for row, (name, lam) in enumerate(zip(names, batch.lam.tolist(), strict=True))
    ]
    metrics = read_metrics(run.folder.metrics)
    save_report(
        run.folder.report,
        metrics,
        images,
        titles,
        run.config.data.mean,
        run.config.data.std,
    )
