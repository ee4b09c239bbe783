"""The memory plan of a `Config`."""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Protocol

import torch
from torch import nn

from fastdeit.config.schema import Config
from fastdeit.distributed.world import World
from fastdeit.kernels.backend import use_backend
from fastdeit.models.build import precision
from fastdeit.models.execution.memory import Memory
from fastdeit.models.finetune.trainable import count_parameters
from fastdeit.models.student import Student
from fastdeit.training.build import (
    build_criterion,
    build_deepspeed_config,
    build_forward,
    count_copies,
)
from fastdeit.training.forward import MicroLoss
from fastdeit.training.memory.checkpointing import can_checkpoint
from fastdeit.training.memory.plan import MemoryPlan, ZeroLayout, advise, count_state
from fastdeit.training.memory.usage import StepUsage, fused_attention, measure_step

Planner = Callable[[int, bool], MemoryPlan]
"""A function that makes the plan of a micro-batch, with or without activation checkpointing."""


class TeacherMemory(Protocol):
    """A live teacher, whose memory is counted."""

    def measure_memory(self, batch: int) -> Memory:
        """Return the bytes of the weights, and of the activations of so many images."""


def note_memory(
    config: Config, world: World, model: nn.Module, teacher: TeacherMemory | None, num_classes: int
) -> list[str]:
    """Return a note on the memory that a run needs on this rank's GPU, with what to change if it is
    near to what is free; none on a CPU, and for a model that the meta device cannot run.

    model: on the CPU, before anything of it is on the GPU.
    """
    if world.device.type != "cuda":
        return []
    # the teacher is on the device already, and in the plan
    free = torch.cuda.mem_get_info(world.device)[0] + torch.cuda.memory_reserved(world.device)
    try:
        planner = build_planner(config, world, model, teacher, num_classes)
        return [_describe(planner, config, world, can_checkpoint(model), free)]
    except Exception:  # a model may raise anything, and this is for the eye alone
        return []


def _describe(
    planner: Planner, config: Config, world: World, can_checkpoint: bool, free: float
) -> str:
    checkpointing = config.run.grad_checkpointing
    plan = planner(find_micro_batch(config, world), checkpointing)
    if plan.fits(free):
        return plan.describe(free)
    forms = [checkpointing, True] if can_checkpoint and not checkpointing else [checkpointing]
    return f"{plan.describe(free)}; it may not suffice: {advise(planner, plan, forms, free)}"


def find_micro_batch(config: Config, world: World) -> int:
    """Return the images of a micro-batch."""
    return config.optim.micro_batch or config.optim.batch_size // world.size


def build_planner(
    config: Config, world: World, model: nn.Module, teacher: TeacherMemory | None, num_classes: int
) -> Planner:
    """Return the function that plans a run's memory on a rank; world: its device may be absent."""
    return partial(_plan, config, world, model, teacher, num_classes)


def _plan(
    config: Config,
    world: World,
    model: nn.Module,
    teacher: TeacherMemory | None,
    num_classes: int,
    micro_batch: int,
    checkpointing: bool,
) -> MemoryPlan:
    changed = config.replace(optim={"micro_batch": micro_batch})
    layout = build_layout(changed, world)
    with _checkpointing(model, checkpointing):
        usage = measure_model(changed, world, model, num_classes)
    parts = count_state(*count_parameters(model), layout)
    parts["activations"] = usage.activations
    parts["backward pass"] = usage.peak - usage.activations
    parts["batches"] = _count_batches(changed, world, layout, with_images=teacher is not None)
    return MemoryPlan(parts | _count_teacher(teacher, micro_batch, usage), micro_batch)


@contextlib.contextmanager
def _checkpointing(model: Any, enable: bool) -> Iterator[None]:
    """Turn a model's activation checkpointing on or off within the block."""
    if not enable:
        yield
        return
    model.set_grad_checkpointing(True)
    try:
        yield
    finally:
        model.set_grad_checkpointing(False)


def build_layout(config: Config, world: World) -> ZeroLayout:
    """Return what decides how the state is divided over the ranks."""
    # a user's file changes the size of buckets at most
    settings = build_deepspeed_config(config.replace(run={"deepspeed_config": ""}), world)
    zero = settings["zero_optimization"]
    offloads = config.run.offload_optimizer
    return ZeroLayout(
        stage=zero["stage"],
        ranks=world.size,
        itemsize=precision(config, world)[1].itemsize,
        micro_steps=settings["gradient_accumulation_steps"],
        is_flat=zero["stage"] < 3 and not (offloads or config.run.deepspeed_config),
        offloads=offloads,
        ema=config.optim.model_ema,
        bucket=zero["reduce_bucket_size"],
    )


def measure_model(config: Config, world: World, model: nn.Module, num_classes: int) -> StepUsage:
    """Measure the forward and backward pass of a micro-batch, as the kernels of the world's device
    run it."""
    dtype = precision(config, world)[1]
    on_gpu = world.device.type == "cuda"
    fused = config.run.kernels == "triton" or (config.run.kernels == "auto" and on_gpu)
    compute = _make_step(config, model, dtype, find_micro_batch(config, world), num_classes)
    with use_backend("triton" if fused else "reference"), fused_attention():
        return measure_step(model, compute, dtype)


def _make_step(
    config: Config, model: nn.Module, dtype: torch.dtype, size: int, num_classes: int
) -> MicroLoss:
    """Return the loss of a micro-batch on the meta device."""
    side, is_taught = config.data.input_size, config.distill.distillation_type != "none"
    with torch.device("meta"):
        inputs, masks = torch.empty(size, 3, side, side, dtype=dtype), None
        if isinstance(model, Student):
            patches = (size, model.grid_size**2, 3 * model.patch_size**2)
            depth = len(model.blocks) * count_copies(config)
            inputs = torch.empty(patches, dtype=dtype)
            masks = torch.empty(size, depth, 2, dtype=torch.bool)
        labels, lam = torch.empty(size, dtype=torch.int64), torch.empty(size)
        taught = torch.empty(size, num_classes) if is_taught else None
    tensors = (inputs, labels, lam, masks, taught)
    return MicroLoss(build_forward(config, model, dtype), build_criterion(config), tensors)


def _count_batches(config: Config, world: World, layout: ZeroLayout, *, with_images: bool) -> float:
    """Return the bytes of images on the device: the mixed ones, for the student and the teacher,
    and those that the loader makes in advance."""
    values = find_micro_batch(config, world) * 3 * config.data.input_size**2
    unmixed = 2 if world.device.type == "cuda" else 4
    ahead = config.data.prefetch + 2  # the present batch, and one that is read ahead
    return values * (layout.itemsize * (1 + with_images) + unmixed * ahead)


def _count_teacher(
    teacher: TeacherMemory | None, micro_batch: int, usage: StepUsage
) -> dict[str, float]:
    """Return the bytes of a live teacher by part: its activations are freed before the student
    runs."""
    if teacher is None:
        return {}
    memory = teacher.measure_memory(micro_batch)
    beyond = max(0, (memory.activations or 0) - usage.peak)
    return {"teacher": memory.weights + beyond}
