"""Build what trains from a `Config`: DeepSpeed's settings and the `Trainer`. Importing it needs no
DALI."""

import copy
from typing import Any

from torch import nn

from fastdeit.config.schema import Config
from fastdeit.distributed.world import World
from fastdeit.kernels.backend import set_backend
from fastdeit.models.build import precision
from fastdeit.models.teacher import Teacher
from fastdeit.teacher_cache.reader import CachedTeacher
from fastdeit.training.deepspeed import deepspeed_config
from fastdeit.training.deepspeed_file import add_file
from fastdeit.training.flat import FlatLossModule, LossModule
from fastdeit.training.losses import DistillationLoss
from fastdeit.training.optim import build_adamw, build_schedule, parameter_groups
from fastdeit.training.trainer import Trainer, build_engine


def build_deepspeed_config(config: Config, world: World) -> dict[str, Any]:
    """The settings of DeepSpeed with those of --deepspeed-config, if there is one. Raises what
    `add_file` raises."""
    optim = config.optim
    micro_batch = optim.micro_batch or optim.batch_size // world.size
    ours = deepspeed_config(
        batch_size=optim.batch_size,
        micro_batch=micro_batch,
        grad_accum_steps=optim.batch_size // world.size // micro_batch,
        precision=precision(config, world)[0],
        zero_stage=config.run.zero_stage,
        clip_grad=optim.clip_grad,
        offload_optimizer=config.run.offload_optimizer,
    )
    return add_file(ours, config.run.deepspeed_config) if config.run.deepspeed_config else ours


def build_trainer(
    config: Config,
    world: World,
    model: nn.Module,
    teacher: Teacher | None,
    steps_per_epoch: int,
    cached_teacher: CachedTeacher | None = None,
) -> Trainer:
    """The student under DeepSpeed with optimizer, schedule, loss and average, at step 0; a
    collective.

    Chooses the form of the kernels for the whole process.
    """
    optim, distill = config.optim, config.distill
    set_backend(config.run.kernels)
    dtype = precision(config, world)[1]
    eval_model = copy.deepcopy(model).to(world.device, dtype).eval()
    settings = build_deepspeed_config(config, world)
    in_pieces = settings["zero_optimization"]["stage"] == 3
    groups = parameter_groups(model, optim.weight_decay, optim.layer_decay)
    module = (LossModule if in_pieces else FlatLossModule)(model, groups)
    fused = (
        world.device.type == "cuda" or config.run.offload_optimizer
    )  # torch's one pass over the state, on either device
    optimizer = build_adamw(
        module.groups, optim.scaled_lr, optim.opt_betas, optim.opt_eps, fused=fused
    )
    engine = build_engine(module, optimizer, settings)
    schedule = build_schedule(
        engine.optimizer,
        total_steps=optim.epochs * steps_per_epoch,
        warmup_steps=round(optim.warmup_epochs * steps_per_epoch),
        warmup_lr=optim.warmup_lr,
        min_lr=optim.min_lr,
    )
    criterion = DistillationLoss(
        kind=distill.distillation_type,
        alpha=distill.distillation_alpha,
        tau=distill.distillation_tau,
        smoothing=config.mix.smoothing,
        legacy=distill.distillation_legacy,
        bce=distill.bce_loss,
    )
    return Trainer(
        engine=engine,
        eval_model=eval_model,
        teacher=teacher,
        decode=None
        if cached_teacher is None
        else cached_teacher.decoder(hard=distill.distillation_type == "hard"),
        criterion=criterion,
        schedule=schedule,
        ema_decay=optim.model_ema_decay if optim.model_ema else None,
        seed=config.run.seed,
        rank=world.rank,
        dtype=dtype,
    )
