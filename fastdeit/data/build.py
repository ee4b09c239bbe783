"""The index, the quarantine and the loaders of a data set, built from a `Config`."""

import contextlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fastdeit.config.parse import require
from fastdeit.config.schema import Config
from fastdeit.data.formats.cifar.files import choose_cifar
from fastdeit.data.formats.detect import VALIDATION, SplitLocation, find_split, refuse_unordered
from fastdeit.data.formats.digits import write_digits
from fastdeit.data.formats.folder import class_folders
from fastdeit.data.formats.labels import class_names_beside
from fastdeit.data.formats.listing import DataError
from fastdeit.data.graphs.options import PipelineOptions
from fastdeit.data.index import Index
from fastdeit.data.indexing import BadImages, build_index
from fastdeit.data.quarantine import Quarantine
from fastdeit.data.remote.stage import fetch_folder, local_folder
from fastdeit.data.snapshot import reconcile
from fastdeit.distributed.collectives import first_on_rank0, on_each_machine
from fastdeit.distributed.world import World
from fastdeit.plan.plan import Plan
from fastdeit.storage.run_folder import RunFolder

if TYPE_CHECKING:
    from fastdeit.data.loaders.evaluation import EvalLoader
    from fastdeit.data.loaders.train import TeacherRecords, TrainLoader

_EXACT_FROM_THREADS = 8
"""The threads beside a GPU from which `auto` means the exact backend, whose operator augments about
1,000 images/s a core. With fewer, DALI's own operators should be faster, which no GPU has shown
yet."""


def build_data(config: Config) -> tuple[Index, Index]:
    """Build the indexes of the training and the validation images; a collective.

    Raises ValueError as `build_index` does.
    """
    data = config.data

    def build() -> tuple[Index, Index]:
        # a run that resumes has its images; those that were damaged since are excluded
        is_new = not RunFolder.of(config.run.output_dir).train_images.is_file()
        train = build_train_index(config, require_classes=is_new)
        val = build_index(
            find_root(config),
            data.val_split,
            classes=train.classes,
            bad_images=data.bad_images,
            check=data.index_check,
        )
        return train, val

    if data.data_cache:  # each machine has its own copy, which all its ranks would list at once
        on_each_machine(lambda _: build() and None)
    return first_on_rank0(build)


def build_train_index(config: Config, *, require_classes: bool = False) -> Index:
    """Build the index of the training images, without other processes.

    require_classes: refuse a class folder in which no image can be used. Raises DataError for
    Parquet files, whose images cannot be read in random order, and as `build_index` does.
    """
    data = config.data
    root = find_root(config)
    refuse_unordered(root, data.train_split)
    return build_index(
        root,
        data.train_split,
        bad_images=data.bad_images,
        require_classes=require_classes,
        check=data.index_check,
    )


def fetch_data(
    config: Config, *, alone: bool = False, proceed: Callable[[], bool] = lambda: True
) -> None:
    """Fetch a data set at a URL into the cache, as `fetch_folder` does; a resumed run uses a
    complete copy as it is."""
    data = config.data
    if data.data_set == "digits":  # they are written to a folder
        return
    output = config.run.output_dir
    fetch_folder(
        data.data_path,
        (data.train_split, data.val_split) if data.data_set == "any" else (),
        data.data_cache,
        uses_copy=bool(output) and RunFolder.of(output).train_images.is_file(),
        alone=alone,
        proceed=proceed,
    )


def find_root(config: Config) -> Path:
    """Return the folder of the data set that --data-set names, for a URL its folder in the cache;
    write the digits there if they are missing.

    Raises ValueError if no folder is given, or it holds no such data set.
    """
    data = config.data
    allowed = "the folder of a data set, see docs/data.md"
    require(bool(data.data_path), "data_path", data.data_path, allowed)
    root = local_folder(data.data_path, data.data_cache)
    if data.data_set == "digits":
        write_digits(root)
    return root if data.data_set in ("any", "digits") else choose_cifar(root, data.data_set)


def build_eval_index(root: Path, split: str, names: Sequence[str], bad_images: BadImages) -> Index:
    """Return the index of a split for an evaluation, which needs no training images.

    names: the classes that the labels of a list or of shards number, where neither training images
    nor a classes.txt define them. A `val` that does not exist is the data set's own folder, if it
    holds class folders. Raises DataError as `build_index` does.
    """
    root = Path(os.path.abspath(root))
    split = _choose_split(root, split)
    found = find_split(root, split)
    own = class_folders(found.paths[0]) if found.kind == "folder" else names
    classes = None if _has_classes(root, split, found) else own
    return build_index(root, split, classes=classes, bad_images=bad_images)


def _choose_split(root: Path, split: str) -> str:
    others = ("train", *VALIDATION)
    if split == "val" and root.is_dir() and not any((root / name).exists() for name in others):
        with contextlib.suppress(DataError):
            find_split(root, split)
            return split
        return "." if class_folders(root) else split
    return split


def _has_classes(root: Path, split: str, found: SplitLocation) -> bool:
    """Return True if the data set itself defines the classes of a split."""
    if found.kind != "folder" and class_names_beside(found.home):
        return True
    if split not in VALIDATION:
        return found.kind == "folder"
    try:
        find_split(root, "train")
    except DataError:
        return False
    return True


def build_quarantine(config: Config, index: Index) -> tuple[Index, Quarantine]:
    """Return the index with the rows that this run began with, and a quarantine with those that
    must not be read; write nothing.

    Raises DataError when too many images are gone.
    """
    folder = RunFolder.of(config.run.output_dir)
    gone: dict[int, str] = {}
    if folder.train_images.is_file() and index.split == config.data.train_split:
        index, gone = reconcile(index, folder.train_images)
    quarantine = Quarantine(index, config.data.bad_images, folder.quarantine)
    if gone:
        quarantine.exclude(gone)
    return index, quarantine


def pipeline_options(config: Config, world: World) -> PipelineOptions:
    """Return where and how this rank reads images, with `auto` replaced by what it means here."""
    return choose_options(
        world,
        mean=config.data.mean,
        std=config.data.std,
        num_workers=config.data.num_workers,
        prefetch=config.data.prefetch,
        read_ahead=config.data.read_ahead,
        backend=config.augment.augment_backend,
        augment_device=config.augment.augment_device,
        decoder=config.data.decoder,
    )


def choose_options(
    world: World,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    num_workers: int = 0,
    prefetch: int = 2,
    read_ahead: str = "auto",
    backend: str = "auto",
    augment_device: str = "auto",
    decoder: str = "auto",
) -> PipelineOptions:
    """Return where and how this rank reads images.

    mean, std: of each channel, for values in 0..1; num_workers: the number of threads, 0: the
    rank's share of the cores; read_ahead, backend, augment_device, decoder: `auto` is replaced by
    what it means here. Raises ValueError for a decoder or a device that is not possible here.
    """
    device = "gpu" if world.device.type == "cuda" else "cpu"
    threads = num_workers or world.threads
    backend = _choose_backend(backend, augment_device, device, threads)
    augments_on_gpu = device == "gpu" and (backend == "native" or augment_device == "gpu")
    if decoder == "auto":
        decoder = "mixed" if backend == "native" and device == "gpu" else "cpu"
    allowed = f"cpu with --augment-backend {backend} on a {device}"
    if device == "gpu":
        allowed += " without --augment-device gpu"
    require(decoder == "cpu" or augments_on_gpu, "decoder", decoder, allowed)
    return PipelineOptions(
        mean=mean,
        std=std,
        device=device,
        device_id=world.device.index,
        num_threads=threads,
        prefetch=prefetch,
        # no GPU has shown it yet
        read_ahead=read_ahead == "on" or (read_ahead == "auto" and device == "cpu"),
        backend=backend,
        decoder=decoder,
        uses_kernels=backend == "exact" and augment_device == "gpu",
    )


def _choose_backend(backend: str, augment_device: str, device: str, threads: int) -> str:
    """Return `backend` with `auto` replaced. Raises ValueError for an --augment-device that this
    machine does not have, or that the backend cannot use."""
    allowed = "auto or cpu where there is no GPU"
    require(augment_device != "gpu" or device == "gpu", "augment_device", augment_device, allowed)
    if backend == "auto":
        is_slow = device == "gpu" and threads < _EXACT_FROM_THREADS
        return "native" if is_slow and augment_device == "auto" else "exact"
    allowed = f"auto or {device} with --augment-backend native on a {device}"
    is_natives = backend != "native" or augment_device in ("auto", device)
    require(is_natives, "augment_device", augment_device, allowed)
    return backend


def build_train_loader(
    config: Config,
    world: World,
    index: Index,
    plan: Plan,
    *,
    quarantine: Quarantine,
    drop_path: tuple[float, ...] = (),
    teacher_records: "TeacherRecords | None" = None,
    ranks: Sequence[int] = (),
    alternating: bool = False,
) -> "TrainLoader":
    """Build the loader of this rank's planned batches, or of those of `ranks`.

    drop_path: the rate of each block of the student, empty if it has none. alternating: see
    `TrainLoader`.
    """
    from fastdeit.data.loaders.train import TrainLoader  # DALI and numba import slowly

    return TrainLoader(
        index,
        plan,
        pipeline_options(config, world),
        batch_size=config.optim.batch_size,
        micro_batch=config.optim.micro_batch or config.optim.batch_size // world.size,
        rank=world.rank,
        world_size=world.size,
        ranks=ranks,
        alternating=alternating,
        drop_path=drop_path,
        quarantine=quarantine,
        period=config.distill.cache_period,
        teacher_records=teacher_records,
    )


def build_eval_loader(
    config: Config, world: World, index: Index, quarantine: Quarantine
) -> "EvalLoader":
    """Build the loader of this rank's share of the validation images.

    The batch size is that of training, at most 256 and no more than the share.
    """
    from fastdeit.data.loaders.evaluation import EvalLoader

    share = -(-len(index) // world.size)
    return EvalLoader(
        index,
        pipeline_options(config, world),
        batch_size=min(config.optim.batch_size // world.size, 256, share),
        input_size=config.data.eval_input_size or config.data.input_size,
        crop_pct=config.data.eval_crop_ratio,
        rank=world.rank,
        world_size=world.size,
        quarantine=quarantine,
    )
