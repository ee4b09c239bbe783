"""Build data, plan and models from a `Config`; training/build.py builds what trains. Nothing below them sees a `Config`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from fastdeit.config.parse import require
from fastdeit.config.schema import Config
from fastdeit.data.eval_loader import EvalLoader
from fastdeit.data.formats.digits import write_digits
from fastdeit.data.index import Index, build_index
from fastdeit.data.loader import TrainLoader
from fastdeit.data.pipeline import PipelineOptions
from fastdeit.data.quarantine import Quarantine
from fastdeit.data.snapshot import same_images
from fastdeit.distributed.collectives import first_on_rank0
from fastdeit.distributed.world import World
from fastdeit.models.student import SIZES, Student, build_student
from fastdeit.models.teacher import Teacher, load_teacher
from fastdeit.models.weights import check_match, has_qkv_bias, load_student_weights, read_weights
from fastdeit.plan.plan import Plan, PlanSpec
from fastdeit.teacher_cache.reader import Replay
from fastdeit.training.build import precision

IMAGES = "train-images.parquet"
"""In a run's folder: the training images that it began with."""

_EXACT_FROM_THREADS = 8


def build_data(config: Config) -> tuple[Index, Index]:
    """The tables of the training and the validation images; a collective. Raises ValueError as `build_index` does."""
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
    """The index with the rows that this run began with, and those of them that must not be read (any more); not written down.

    Raises DataError when too many are gone.
    """
    folder = Path(config.run.output_dir)
    gone: dict[int, str] = {}
    if (folder / IMAGES).is_file() and index.split == config.data.train_split:
        index, gone = same_images(index, folder / IMAGES)
    quarantine = Quarantine(index, config.data.bad_images, folder / "quarantine.jsonl")
    if gone:
        quarantine.take_out(gone)
    return index, quarantine


def build_plan(config: Config, index: Index) -> Plan:
    """The plan of a run over the training images of `index`."""
    augment, mix = config.augment, config.mix
    spec = PlanSpec(
        seed=config.run.seed,
        input_size=config.data.input_size,
        repeats=augment.aug_repeats if augment.repeated_aug else 1,
        scale=augment.scale,
        ratio=augment.ratio,
        hflip=augment.hflip,
        reprob=augment.reprob,
        remode=augment.remode,
        mixup=mix.mixup,
        cutmix=mix.cutmix,
        cutmix_minmax=mix.cutmix_minmax,
        mixup_prob=mix.mixup_prob,
        mixup_switch_prob=mix.mixup_switch_prob,
        mixup_group=mix.mixup_group,
        simple_crop=augment.src,
        **augment.operations(),
    )
    return Plan(spec, index.sizes)


def pipeline_options(config: Config, world: World) -> PipelineOptions:
    """Where and how images are read on this rank, with what `auto` means here filled in."""
    device = "gpu" if world.device.type == "cuda" else "cpu"
    threads = config.data.num_workers or world.threads
    backend, decoder = config.augment.augment_backend, config.data.decoder
    if backend == "auto":
        # the exact operator keeps about 400 images/s a core: a GPU with few cores beside it is better served by DALI's own
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
    drop_path: tuple[float, ...],
    quarantine: Quarantine,
    replay: Replay | None = None,
    ranks: Sequence[int] = (),
) -> TrainLoader:
    """Planned batches of this rank, or of `ranks`; drop_path: the rate of each block of the student, empty if it has none."""
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
        answers=replay,
    )


def build_eval_loader(
    config: Config, world: World, index: Index, quarantine: Quarantine
) -> EvalLoader:
    """This rank's share of the validation images, of the batch size of training."""
    return EvalLoader(
        index,
        pipeline_options(config, world),
        batch_size=min(config.optim.batch_size // world.size, 256, -(-len(index) // world.size)),
        input_size=config.data.eval_input_size or config.data.input_size,
        crop_pct=config.data.eval_crop_ratio,
        rank=world.rank,
        world_size=world.size,
        quarantine=quarantine,
    )


def build_model(config: Config, num_classes: int) -> tuple[nn.Module, list[str]]:
    """The model to train, with fresh weights or those of --finetune, and notes on what was changed to fit them."""
    torch.manual_seed(config.run.seed)
    if config.model.model in SIZES:
        return _build_student(config, num_classes)
    name, size = config.model.model, config.data.input_size
    cfg = timm.get_pretrained_cfg(name, allow_unregistered=True)
    sized = {"img_size": size} if cfg is not None and cfg.fixed_input_size else {}
    model = timm.create_model(
        name,
        pretrained=False,
        num_classes=num_classes,
        drop_path_rate=config.model.drop_path or None,
        **sized,
    )
    return model, _load_timm_weights(model, config.model.finetune) if config.model.finetune else []


def _load_timm_weights(model: nn.Module, path: str) -> list[str]:
    """Loads a checkpoint into a timm model; its classifier stays fresh when the file's has another size."""
    state, own, notes = read_weights(path)[0], model.state_dict(), []
    named: Any = model.pretrained_cfg["classifier"]  # type: ignore[index]  # timm sets it on every model
    for classifier in (named,) if isinstance(named, str) else named:
        found = state.get(f"{classifier}.weight")
        if found is not None and found.shape != own[f"{classifier}.weight"].shape:
            notes.append(f"{classifier} left as initialised: {len(found)} classes in the file")
            state |= {
                name: value for name, value in own.items() if name.startswith(f"{classifier}.")
            }
    check_match(own, state, "the model")
    model.load_state_dict(state)
    return notes


def _build_student(config: Config, num_classes: int) -> tuple[Student, list[str]]:
    chosen = config.model
    sizes = ("patch_size", "embed_dim", "depth", "num_heads")
    overrides = {name: getattr(chosen, name) for name in sizes if getattr(chosen, name) is not None}
    notes, qkv_bias = [], chosen.qkv_bias
    if chosen.finetune and not qkv_bias and has_qkv_bias(read_weights(chosen.finetune)[0]):
        notes, qkv_bias = ["--qkv-bias turned on: the weights of --finetune have it"], True
    student = build_student(
        chosen.model,
        num_classes=num_classes,
        image_size=config.data.input_size,
        qkv_bias=qkv_bias,
        drop_path=chosen.drop_path,
        **overrides,
    )
    if chosen.finetune:
        notes += load_student_weights(student, chosen.finetune)
    return student, notes


def build_teacher(config: Config, world: World, classes: tuple[str, ...]) -> Teacher | None:
    """The live teacher on this rank's device, or None where none is needed.

    classes: the data set's, in the order of the labels. Raises ValueError if the teacher's file names other ones.
    """
    if not config.distill.needs_teacher:
        return None
    teacher = load_teacher(
        config.distill.teacher_model,
        config.distill.teacher_path,
        num_classes=len(classes),
        device=world.device,
        dtype=precision(config, world)[1],
        student_mean=config.data.mean,
        student_std=config.data.std,
        student_size=config.data.input_size,
    )
    if teacher.classes not in (None, classes):
        raise ValueError(
            f"--teacher-path: {config.distill.teacher_path} knows other classes than {config.data.data_path}"
        )
    return teacher


def weight_metadata(config: Config, index: Index, model: nn.Module) -> dict[str, str]:
    """What student.safetensors tells of itself, as JSON values: enough to build the model and its input again."""
    facts = {
        "input_size": config.data.input_size,
        "mean": config.data.mean,
        "std": config.data.std,
        "crop_pct": config.data.eval_crop_ratio,
        "num_classes": len(index.classes),
        "classes": index.classes,
    }
    if isinstance(model, Student):
        facts["num_heads"] = model.num_heads
    return {"model": config.model.model} | {
        name: json.dumps(value) for name, value in facts.items()
    }
