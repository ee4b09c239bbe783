"""The first samples of a run, as its loader makes them, with what was planned for each."""

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from fastdeit.config.changes import find_paths
from fastdeit.config.schema import Config
from fastdeit.data.build import build_train_loader, find_root
from fastdeit.data.index import Index
from fastdeit.data.loaders.batch import Batch
from fastdeit.data.quarantine import Quarantine, read_quarantine
from fastdeit.data.remote.stage import local_folder
from fastdeit.data.snapshot import read_images
from fastdeit.data.stored_image import read_stored_image
from fastdeit.display.pictures import draw_frame, draw_row
from fastdeit.display.pixels import denormalise
from fastdeit.distributed.world import World
from fastdeit.kernels.mix import mix
from fastdeit.plan.build import build_plan
from fastdeit.plan.description import describe_sample, describe_target
from fastdeit.plan.plan import Plan, SampleParams
from fastdeit.report.pictures import Picture
from fastdeit.report.record import RunRecord

if TYPE_CHECKING:
    from fastdeit.data.loaders.train import TrainLoader

_HEIGHT = 128  # of a picture, in pixels
_THREADS = 2


def draw_samples(record: RunRecord, count: int) -> tuple[Picture, ...]:
    """Return a picture of each of the first samples of the epoch in which a run began.

    The images are those that the run began with. Raises ValueError if they no longer exist, or have
    changed.
    """
    settings = find_settings(record)
    index = read_images(record.folder.train_images, find_data(settings))
    known = Quarantine.of(index, _list_excluded(record, index))
    plan = build_plan(settings, index.sizes)
    epoch = _find_epoch(record, settings, plan)
    size = min(count, len(index)) // 2 * 2
    loader = _open_loader(settings, index, plan, known, size)
    with contextlib.closing(loader):
        return _draw(next(loader.epoch(epoch)), plan.draw(epoch, np.arange(size)), index, settings)


def find_settings(record: RunRecord) -> Config:
    """Return the settings of a run, with paths that exist here, and the backend that made its
    samples. Raises ValueError without any."""
    recorded = record.settings
    if recorded is None:
        raise ValueError("the settings of the run are not there")
    found = find_paths(recorded, recorded.replace(run={"output_dir": str(record.folder)}))
    if not record.attempts:
        return found
    # what `auto` chose on the machine of the run
    return found.replace(augment={"augment_backend": record.attempts[0].augment_backend})


def find_data(settings: Config) -> Path:
    """Return the folder of a data set, absolute. Raises ValueError if it does not exist."""
    data = settings.data
    folder = local_folder(data.data_path, data.data_cache)
    if not (data.data_path and folder.is_dir()):
        raise ValueError(f"the data set is not at {folder}")
    return Path(os.path.abspath(find_root(settings)))


def _list_excluded(record: RunRecord, index: Index) -> list[int]:
    """Return the rows that the run had excluded when it drew its first batch."""
    recorded = read_quarantine(record.folder.quarantine, index.split)
    began = record.attempts[0].step if record.attempts else 0
    first = [image.row for image in recorded if image.step <= began]
    return [*first, *(record.attempts[0].left_out if record.attempts else ())]


def _find_epoch(record: RunRecord, settings: Config, plan: Plan) -> int:
    """Return the epoch of the plan in which a run began: 0, but for --resume."""
    step = record.attempts[0].step if record.attempts else 0
    epoch = step // plan.steps_per_epoch(settings.optim.batch_size)
    period = settings.distill.cache_period
    return epoch % period if period else epoch


def _open_loader(
    settings: Config, index: Index, plan: Plan, known: Quarantine, size: int
) -> "TrainLoader":
    """Open a loader of batches of `size`, for this process alone, on the CPU."""
    config = settings.replace(
        optim={"batch_size": size, "micro_batch": 0},
        augment={"augment_device": "cpu"},
        data={"decoder": "auto", "prefetch": 1, "read_ahead": "off", "num_workers": _THREADS},
    )
    alone = World(0, 1, 0, 1, torch.device("cpu"))
    return build_train_loader(config, alone, index, plan, quarantine=known)


def _draw(batch: Batch, draws: SampleParams, index: Index, settings: Config) -> tuple[Picture, ...]:
    data = settings.data
    augmented = denormalise(batch.images, data.mean, data.std)
    mixed = denormalise(mix(batch.unmixed, batch.lam, batch.box), data.mean, data.std)
    names = [index.classes[label] for label in batch.labels.tolist()]
    pictures = []
    for row, image in enumerate(draws.image_index.tolist()):
        stored = draw_frame(np.asarray(read_stored_image(index, image)), draws.crop[row].tolist())
        title = describe_target(float(draws.lam[row]), names[row], names[row ^ 1])
        alt = f"Training image {index.name(image)} with its crop, augmented, and mixed: {title}"
        lines = describe_sample(draws, row, names)
        drawn = draw_row([stored, augmented[row], mixed[row]], _HEIGHT)
        pictures.append(Picture(drawn, title, alt, tuple(lines)))
    return tuple(pictures)
