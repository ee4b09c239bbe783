"""The trainer on random batches that are on the device already: no loader, no teacher, no DALI.

It trains with the recipe `deit`: a distilled student, DropPath, pairs mixed by Mixup and CutMix,
hard labels, AdamW, the schedule, EMA. The teacher's outputs are records of two bytes, as in a
teacher cache.
"""

import dataclasses
import functools
from typing import Any

import numpy as np
import torch

from benchmarks.bench_mix import make_inputs
from fastdeit.config.schema import Config
from fastdeit.data.loaders.batch import Batch
from fastdeit.distributed.world import World
from fastdeit.models.student import Student, build_student
from fastdeit.teacher_cache.format import Manifest, decode
from fastdeit.training.build import build_trainer
from fastdeit.training.trainer import Trainer

CLASSES = 1000
STEPS_PER_EPOCH = 1251
"""The steps in an epoch of ImageNet at a batch size of 1024, as in the recipe's schedule."""
TOY = {"model": "deit_tiny_distilled_patch16_224", "embed_dim": 32, "depth": 12, "num_heads": 1}
"""A small student with all blocks and parameters of a DeiT, whose launches take more time than the
arithmetic on a CPU."""
DIGITS = {
    **{"model": "deit_tiny_distilled_patch16_224", "patch_size": 4, "embed_dim": 96},
    **{"depth": 4, "num_heads": 3, "drop_path": 0.05},
}
"""The student of the recipe `digits`."""
SMALL_STUDENTS = {"toy": TOY, "digits": DIGITS}
SMALL_SIZE = 32
MANIFEST = Manifest("hard", 1, CLASSES, samples=2, facts={})
"""The manifest of the records of the teacher's outputs in the batches."""


def make_config(
    student: str,
    batch_size: int,
    *,
    accumulate: int = 1,
    clip_grad: float | None = None,
    **run: Any,
) -> Config:
    """Return the recipe `deit` for a student, "tiny", "small", "base", "toy" or "digits", in one
    process.

    batch_size: samples of an optimizer step, in `accumulate` micro-batches.
    run: fields of the section `run` (precision, zero_stage, kernels).
    """
    size = SMALL_SIZE if student in SMALL_STUDENTS else 224
    model = SMALL_STUDENTS.get(student, {"model": f"deit_{student}_distilled_patch16_224"})
    return Config().replace(
        data={"input_size": size},
        model=model,
        optim={
            "batch_size": batch_size,
            "micro_batch": batch_size // accumulate,
            "clip_grad": clip_grad,
        },
        run=run,
    )


def model_sizes(config: Config) -> dict[str, int]:
    """Return the sizes that the config sets, by the keywords of `Student`, which are those of
    timm."""
    names = ("patch_size", "embed_dim", "depth", "num_heads")
    sizes = {name: getattr(config.model, name) for name in names}
    return {name: size for name, size in sizes.items() if size is not None}


def make_student(config: Config) -> Student:
    model = config.model
    return build_student(
        model.model,
        num_classes=CLASSES,
        drop_path=model.drop_path,
        qkv_bias=model.qkv_bias,
        image_size=config.data.input_size,
        seed=config.run.seed,
        **model_sizes(config),
    )


def make_trainer(config: Config, world: World) -> Trainer:
    decode_hard = functools.partial(decode, manifest=MANIFEST, hard=True)
    return build_trainer(config, world, make_student(config), None, STEPS_PER_EPOCH, decode_hard)


def make_batch(size: int, device: torch.device, side: int = 224, depth: int = 12) -> Batch:
    """Return `size` samples, the same in every call, each with a class of the teacher.

    One half is mixed by Mixup, the other by CutMix.
    """
    torch.manual_seed(0)
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    images, lam, box = make_inputs((size, 3, side, side), device, dtype)
    teacher_classes = torch.randint(CLASSES, (size,)).numpy().astype(MANIFEST.record)
    records = torch.from_numpy(teacher_classes.view(np.uint8).reshape(size, -1))
    return Batch(
        unmixed=images,
        labels=torch.randint(CLASSES, (size,), device=device),
        lam=lam,
        box=box,
        drop_path_mask=torch.rand(size, depth, 2, device=device) > 0.05,
        ordinals=torch.arange(size, device=device),
        image_index=torch.arange(size, device=device),
        teacher_record=records.to(device),
        digest=1,
    )


def decisions(batch: Batch) -> torch.Tensor:
    """Return the recorded classes of the teacher, int64 (B,)."""
    assert batch.teacher_record is not None
    return decode(batch.teacher_record, MANIFEST, hard=True)


def micro_batches(config: Config, device: torch.device) -> list[Batch]:
    """Return the micro-batches of one optimizer step."""
    size = config.optim.micro_batch
    batch = make_batch(size, device, config.data.input_size)
    return [batch] * (config.optim.batch_size // size)


def all_kept(batch: Batch) -> Batch:
    """Return the batch with no branch dropped."""
    return dataclasses.replace(batch, drop_path_mask=torch.ones_like(batch.drop_path_mask))
