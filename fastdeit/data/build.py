"""Build a data set's index, its quarantine and its loaders from a `Config`."""

from collections.abc import Sequence
from pathlib import Path

from fastdeit.config.parse import require
from fastdeit.config.schema import Config
from fastdeit.data.eval_loader import EvalLoader
from fastdeit.data.formats.digits import write_digits
from fastdeit.data.index import Index, build_index
from fastdeit.data.loader import TeacherRecords, TrainLoader
from fastdeit.data.pipeline import PipelineOptions
from fastdeit.data.quarantine import Quarantine
from fastdeit.data.snapshot import reconcile
from fastdeit.distributed.collectives import first_on_rank0
from fastdeit.distributed.world import World
from fastdeit.plan.plan import Plan
from fastdeit.storage.run_folder import RunFolder

_EXACT_FROM_THREADS = 8


def build_data(config: Config) -> tuple[Index, Index]:
    """The tables of the training and the validation images; a collective. Raises ValueError as
    `build_index` does."""
    data = config.data

    def build() -> tuple[Index, Index]:
        train = build_train_index(config)
        root = Path(data.data_path)
        return train, build_index(
            root, data.val_split, classes=train.classes, bad_images=data.bad_images
        )

    return first_on_rank0(build)


def build_train_index(config: Config) -> Index:
    """The table of the training images, for one process alone."""
    root = Path(config.data.data_path)
    require(
        bool(config.data.data_path), "data_path", config.data.data_path, "a data set (docs/data.md)"
    )
    if config.data.data_set == "digits":
        write_digits(root)
    return build_index(root, config.data.train_split, bad_images=config.data.bad_images)


def build_quarantine(config: Config, index: Index) -> tuple[Index, Quarantine]:
    """The index with the rows that this run began with, and those of them that must not be read
    (any more); not written down.

    Raises DataError when too many are gone.
    """
    folder = RunFolder(Path(config.run.output_dir))
    gone: dict[int, str] = {}
    if folder.train_images.is_file() and index.split == config.data.train_split:
        index, gone = reconcile(index, folder.train_images)
    quarantine = Quarantine(index, config.data.bad_images, folder.quarantine)
    if gone:
        quarantine.exclude(gone)
    return index, quarantine


def pipeline_options(config: Config, world: World) -> PipelineOptions:
    """Where and how images are read on this rank, with what `auto` means here filled in."""
    device = "gpu" if world.device.type == "cuda" else "cpu"
    threads = config.data.num_workers or world.threads
    backend, decoder = config.augment.augment_backend, config.data.decoder
    if backend == "auto":
        # the exact operator keeps about 400 images/s a core: a GPU with few cores beside it is
        # better served by DALI's own
        backend = "exact" if device == "cpu" or threads >= _EXACT_FROM_THREADS else "native"
    if decoder == "auto":
        decoder = "cpu" if device == "cpu" or backend == "exact" else "mixed"
    where = f"cpu with --augment-backend {backend} on a {device}"
    require(
        decoder == "cpu" or (device == "gpu" and backend == "native"), "decoder", decoder, where
    )
    return PipelineOptions(
        config.data.mean,
        config.data.std,
        1,
        device,
        world.device.index,
        threads,
        config.data.prefetch,
        backend,
        decoder,
    )


def build_train_loader(
    config: Config,
    world: World,
    index: Index,
    plan: Plan,
    *,
    quarantine: Quarantine,
    drop_path: tuple[float, ...] = (),
    teacher_records: TeacherRecords | None = None,
    ranks: Sequence[int] = (),
) -> TrainLoader:
    """Build the loader of this rank's planned batches, or of those of `ranks`.

    drop_path: the rate of each block of the student, empty if it has none.
    """
    return TrainLoader(
        index,
        plan,
        pipeline_options(config, world),
        batch_size=config.optim.batch_size,
        micro_batch=config.optim.micro_batch or config.optim.batch_size // world.size,
        rank=world.rank,
        world_size=world.size,
        ranks=ranks,
        drop_path=drop_path,
        quarantine=quarantine,
        period=config.distill.cache_period,
        teacher_records=teacher_records,
    )


def build_eval_loader(
    config: Config, world: World, index: Index, quarantine: Quarantine
) -> EvalLoader:
    """Build the loader of this rank's share of the validation images.

    The batch size is that of training, at most 256 and no more than the share.
    """
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
