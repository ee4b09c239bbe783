"""Building the training loader of `import fastdeit`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from typing_extensions import Unpack

from fastdeit.config.parse import require_value
from fastdeit.config.schema import Config
from fastdeit.config.schema.samples import AugmentConfig, DataConfig
from fastdeit.data.build import build_train_index, build_train_loader, fetch_data, pipeline_options
from fastdeit.data.index import Index
from fastdeit.data.quarantine import Quarantine
from fastdeit.distributed.place import find_world, follows_group, on_first_rank
from fastdeit.distributed.world import World
from fastdeit.library.errors import names_arguments
from fastdeit.library.loader import Loader, LoaderParts
from fastdeit.library.settings import LoaderSettings, check_names, configure
from fastdeit.plan.build import build_plan
from fastdeit.plan.plan import Plan
from fastdeit.teacher_cache.build import check_cache
from fastdeit.teacher_cache.check import read_bad_images
from fastdeit.teacher_cache.reader import Cache, CachedTeacher

Result = TypeVar("Result")


@names_arguments(data_path="path", train_split="split", aug_repeats="repeats")
def create_loader(
    path: str | Path,
    split: str = DataConfig.train_split,
    *,
    batch_size: int,
    repeats: int = AugmentConfig.aug_repeats,
    drop_path_rates: Sequence[float] = (),
    raw: bool = False,
    img_dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    rank: int | None = None,
    world_size: int | None = None,
    **settings: Unpack[LoaderSettings],
) -> Loader:
    """Return a loader of augmented training batches, on a device.

    It yields `(images, targets)`: images (B, 3, H, W) in img_dtype, normalised, erased and mixed;
    targets (B, K) fp32, mixed and smoothed, as timm's `Mixup` makes them. With raw, it yields
    `Batch`es: images before mixing, labels, lam, box, the DropPath mask for drop_path_rates.

    path, split: a data set in any format of docs/data.md, or at a URL (docs/fetch.md). batch_size:
    samples of a step over all ranks; a rank gets batch_size / world_size of them, so that any
    number of ranks sees the same samples in the same step. repeats: copies of an image in an epoch.
    rank, world_size: those of torch.distributed if it is initialised, else 0 and 1. settings:
    `LoaderSettings`, such as input_size, aa, mixup, cutmix, seed. Raises ValueError naming the
    argument.
    """
    check_names(settings, LoaderSettings.__annotations__, "create_loader")
    chosen: dict[str, Any] = {"data_path": str(path), "train_split": split, **settings}
    chosen |= {"batch_size": batch_size, "aug_repeats": repeats}
    config = configure(chosen, "create_loader")
    world = find_world(device, rank, world_size)
    share = 2 * world.size
    allowed = f"a multiple of {share}, for pairs on {world.size} ranks"
    require_value(batch_size % share == 0, "batch_size", batch_size, allowed)
    fetch_data(config, alone=not follows_group(world))
    index = on_first_rank(world, lambda: build_train_index(config, require_classes=True))
    return Loader(_connect(config, world, index, tuple(drop_path_rates)), raw, img_dtype)


def _connect(
    config: Config, world: World, index: Index, drop_path_rates: tuple[float, ...]
) -> LoaderParts:
    plan = build_plan(config, index.sizes)
    quarantine = Quarantine(index, config.data.bad_images)
    pixels = pipeline_options(config, world).describe()
    cache = _open_cache(config, plan, index, pixels) if config.distill.cache else None
    if cache is not None and cache.bad_images:
        quarantine.exclude(cache.bad_images)
    batches = build_train_loader(
        config,
        world,
        index,
        plan,
        quarantine=quarantine,
        drop_path=drop_path_rates,
        teacher_records=cache,
    )
    return LoaderParts(config, world, index, plan, quarantine, cache, batches)


def _open_cache(config: Config, plan: Plan, index: Index, pixels: str) -> CachedTeacher:
    """Open the cache of `cache`; an epoch that is not recorded raises CacheError when it begins."""
    cache = Cache(config.distill.cache)
    first_epoch = config.replace(optim={"epochs": 1})
    check_cache(cache, first_epoch, plan, index, pixels, teacher=None)
    return CachedTeacher(
        cache, config.distill.cache_miss, plan.images, read_bad_images(cache, index)
    )
