"""The evaluation loader of `import fastdeit`."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from fastdeit.config.parse import require_value
from fastdeit.config.schema import Config
from fastdeit.config.schema.samples import DataConfig
from fastdeit.data.build import fetch_data, find_root, pipeline_options
from fastdeit.data.index import Index
from fastdeit.data.indexing import build_index
from fastdeit.data.loaders.evaluation import PADDING, EvalBatch, EvalLoader
from fastdeit.distributed.place import find_world, follows_group, on_first_rank
from fastdeit.distributed.world import World
from fastdeit.library.errors import argument_errors, names_arguments
from fastdeit.library.settings import configure
from fastdeit.models.hub import EvalView

DEFAULT_VIEW = EvalView(
    DataConfig.input_size, DataConfig.mean, DataConfig.std, DataConfig.eval_crop_ratio
)
"""The view of evaluation images with the default settings."""


class EvalImages:
    """Each image of a split once, over all ranks, in a fixed order; made by `create_eval_loader`.

    Attributes: dataset (`Index`: its length is the number of images of all ranks), classes, view.
    """

    def __init__(self, index: Index, view: EvalView, batches: EvalLoader, raw: bool) -> None:
        self.dataset = index
        self.classes = index.classes
        self.view = view
        self._batches = batches
        self._raw = raw

    def __len__(self) -> int:
        """Return the batches of a pass, the same on every rank."""
        return len(self._batches)

    def __iter__(self) -> Iterator[Any]:
        with argument_errors():
            for batch in self._batches:
                yield batch if self._raw else _drop_padding(batch)

    def close(self) -> None:
        """Stop the threads that read ahead; batches that were yielded stay valid."""
        self._batches.close()


def _drop_padding(batch: EvalBatch) -> tuple[torch.Tensor, torch.Tensor]:
    real = batch.labels != PADDING
    if bool(real.all()):
        return batch.images, batch.labels
    return batch.images[real], batch.labels[real]


@names_arguments(data_path="path", val_split="split")
def create_eval_loader(
    path: str | Path,
    split: str = DataConfig.val_split,
    *,
    view: EvalView = DEFAULT_VIEW,
    batch_size: int = 256,
    classes: Sequence[str] | None = None,
    raw: bool = False,
    num_workers: int = 0,
    device: torch.device | str | None = None,
    rank: int | None = None,
    world_size: int | None = None,
) -> EvalImages:
    """Return a loader of evaluation images, resized and cropped as `view` says, on a device.

    It yields `(images, labels)`: images (B, 3, H, W) fp32 (on a GPU fp16), labels (B,) int64; the
    last batch of a rank may be smaller, or empty. With raw, it yields `EvalBatch`es of equal sizes,
    with rows labelled -1 as padding. view: of `load(...)`, for the pixels that a model expects.
    batch_size: of one rank. classes: names that labels count; None: those of the data set. Raises
    ValueError naming the argument.
    """
    require_value(batch_size >= 1, "batch_size", batch_size, "1 or more")
    fields = {"data_path": str(path), "val_split": split, "num_workers": num_workers}
    fields |= {"mean": view.mean, "std": view.std, "input_size": view.size}
    config = configure(fields, "create_eval_loader")
    world = find_world(device, rank, world_size)
    index = _read_index(config, world, classes)
    batches = EvalLoader(
        index,
        pipeline_options(config, world),
        batch_size=batch_size,
        input_size=view.size,
        crop_pct=view.crop_pct,
        interpolation=view.interpolation,
        crop_mode=view.crop_mode,
        rank=world.rank,
        world_size=world.size,
    )
    return EvalImages(index, view, batches, raw)


def _read_index(config: Config, world: World, classes: Sequence[str] | None) -> Index:
    """Return the index of the evaluation images, fetched first if they are at a URL."""
    fetch_data(config, alone=not follows_group(world))
    root, split = find_root(config), config.data.val_split
    return on_first_rank(
        world, lambda: build_index(root, split, classes=classes, bad_images="skip")
    )
