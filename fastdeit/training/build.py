"""DeepSpeed's settings and the `Trainer`, built from a `Config`. Importing this module needs no
DALI."""

import contextlib
import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from timm.scheduler import CosineLRScheduler
from torch import nn

from fastdeit.config.schema import Config
from fastdeit.distributed.world import World, import_deepspeed, without_muon
from fastdeit.models.build import precision
from fastdeit.models.execution.compilation import compile_network
from fastdeit.models.finetune.trainable import count_parameters
from fastdeit.models.student import Student
from fastdeit.models.teachers.ensemble import LiveTeacher
from fastdeit.training.flops import Utilisation, count_flops, estimate_backward_ms, find_peak
from fastdeit.training.forward import ForwardPass, PlannedStudent, SeededModel
from fastdeit.training.losses import CosubLoss, Criterion, DistillationLoss
from fastdeit.training.memory.checkpointing import turn_on_checkpointing
from fastdeit.training.optim.lamb import CLIP_GRAD, Lamb
from fastdeit.training.optim.optimizers import build_adamw, parameter_groups
from fastdeit.training.optim.schedule import Rates, build_schedule
from fastdeit.training.state import Tensors, TrainerState
from fastdeit.training.trainer import Trainer
from fastdeit.training.zero.config import add_user_file, deepspeed_config
from fastdeit.training.zero.flat import FlatLossModule, LossModule
from fastdeit.training.zero.flat_update import FlatUpdate
from fastdeit.training.zero.gradients import FlatGradients
from fastdeit.training.zero.links import Links, choose_pieces
from fastdeit.training.zero.overlap import OverlappedGradients
from fastdeit.training.zero.partitions import OptimizerPartitions, open_partitions
from fastdeit.training.zero.update import DeepSpeedUpdate, Update


def build_deepspeed_config(config: Config, world: World) -> dict[str, Any]:
    """Return the settings of DeepSpeed, with those of --deepspeed-config if there is one. Raises
    what `add_user_file` raises."""
    optim = config.optim
    micro_batch = optim.micro_batch or optim.batch_size // world.size
    ours = deepspeed_config(
        batch_size=optim.batch_size,
        micro_batch=micro_batch,
        grad_accum_steps=optim.batch_size // world.size // micro_batch,
        precision=precision(config, world)[0],
        zero_stage=config.run.zero_stage,
        clip_grad=CLIP_GRAD if optim.opt == "lamb" and not optim.clip_grad else optim.clip_grad,
        offload_optimizer=config.run.offload_optimizer,
    )
    file = config.run.deepspeed_config
    return add_user_file(ours, file) if file else ours


def build_trainer(
    config: Config,
    world: World,
    model: nn.Module,
    teacher: LiveTeacher | None,
    steps_per_epoch: int,
    decode: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> Trainer:
    """Build the student under DeepSpeed with optimizer, schedule, loss and EMA, at step 0; a
    collective.

    decode: maps a batch's teacher records to the teacher's output; None: batches hold none.
    """
    settings = build_deepspeed_config(config, world)
    state = _build_state(config, settings, world, model)
    if config.run.compile == "on":
        compile_network(model)
    return Trainer(
        state=state,
        update=build_update(config, world, settings, state),
        forward=build_forward(config, model, precision(config, world)[1]),
        teacher=teacher,
        decode=decode,
        criterion=build_criterion(config),
        schedule=build_rates(config, state.engine.module.groups, steps_per_epoch),
        kernels=config.run.kernels,
    )


def build_rates(
    config: Config, groups: list[dict[str, Any]], steps_per_epoch: int
) -> CosineLRScheduler:
    """Build the schedule of the learning rates of an optimizer's groups."""
    optim = config.optim
    return build_schedule(
        Rates(groups, optim.scaled_lr),
        epochs=optim.epochs,
        steps_per_epoch=steps_per_epoch,
        warmup_epochs=optim.warmup_epochs,
        warmup_lr=optim.warmup_lr,
        min_lr=optim.final_lr,
        on_updates=optim.sched_on_updates,
        lag=optim.sched_lag,
    )


def build_update(
    config: Config, world: World, settings: dict[str, Any], state: TrainerState
) -> Update:
    """Build the update: ours at ZeRO 1 and 2, unless the optimizer is offloaded or the user has
    settings of DeepSpeed; settings: DeepSpeed's."""
    partitions = state.partitions
    theirs = config.run.deepspeed_config or config.run.offload_optimizer
    if theirs or not isinstance(partitions, OptimizerPartitions):
        return DeepSpeedUpdate(state.engine, partitions)
    how = (
        state.engine.module,
        partitions.masters,
        settings["gradient_accumulation_steps"],
        settings["zero_optimization"]["stage"],
    )
    pieces = count_pieces(config, world, settings, state.eval_model)
    gradients = OverlappedGradients(*how, pieces) if pieces > 1 else FlatGradients(*how)
    return FlatUpdate(state.model, partitions, gradients, settings["gradient_clipping"])


def count_pieces(config: Config, world: World, settings: dict[str, Any], model: nn.Module) -> int:
    """Return the number of pieces of the gradient that are reduced during the backward pass; 1: the
    whole gradient is reduced after it."""
    if config.run.overlap_reduce == "off" or world.size == 1 or world.device.type != "cuda":
        return 1
    flops = count_flops(model, config.data.input_size)
    peak = find_peak(torch.cuda.get_device_name(world.device))
    if flops is None or peak is None:
        return 1
    images = settings["train_micro_batch_size_per_gpu"] * count_copies(config)
    backward_ms = estimate_backward_ms(flops * images, peak)
    _, trained = count_parameters(model)
    return choose_pieces(4 * trained, world.size, backward_ms, Links(world.local_size))


def note_reduction(config: Config, update: Update) -> list[str]:
    """Return a note on what --overlap-reduce auto has led to."""
    if config.run.overlap_reduce == "off":
        return []
    if not isinstance(update, FlatUpdate):
        return ["--overlap-reduce changes nothing: DeepSpeed's own step reduces the gradient"]
    if update.gradients.overlaps:
        return ["the gradient is reduced in pieces during the backward pass"]
    return ["the gradient is reduced after the backward pass: pieces of it would not pay here"]


def _build_state(
    config: Config, settings: dict[str, Any], world: World, model: nn.Module
) -> TrainerState:
    """Build the engine, and the other objects that hold weights; a collective."""
    optim = config.optim
    eval_model = copy.deepcopy(model).to(world.device, precision(config, world)[1]).eval()
    frozen = copy_weights(model, trained=False)
    if config.run.grad_checkpointing:
        turn_on_checkpointing(model, config.model.model)
    return TrainerState(
        build_engine(config, settings, world, model),
        eval_model,
        optim.model_ema_decay if optim.model_ema else None,
        world.rank,
        ema_warmup=optim.model_ema_warmup,
        frozen=frozen,
    )


def build_engine(config: Config, settings: dict[str, Any], world: World, model: nn.Module) -> Any:
    """Build a DeepSpeed engine, whose fp32 master weights are the model's own and not copies of
    weights rounded to bf16; a collective. settings: DeepSpeed's."""
    groups = build_groups(config, model)
    sharded = settings["zero_optimization"]["stage"] == 3
    module = (LossModule if sharded else FlatLossModule)(model, groups)
    optimizer = build_optimizer(config, world, module)
    exact = copy_weights(model, trained=True)
    # DeepSpeed's ZeRO 3 needs the module of Muon itself
    with contextlib.nullcontext() if sharded else without_muon():
        engine, *_ = import_deepspeed().initialize(
            model=module, optimizer=optimizer, config=settings, dist_init_required=False
        )
    module.bind()
    partitions = open_partitions(engine)
    if isinstance(optimizer, Lamb):
        optimizer.bind(partitions.locate(), engine.device)
    if settings["bf16"]["enabled"]:
        partitions.load(exact)
    return engine


def build_groups(config: Config, model: nn.Module) -> list[dict[str, Any]]:
    """Build the parameter groups of the optimizer, by weight decay and depth."""
    optim = config.optim
    decayed = ("dist_token",) if optim.dist_token_decay else ()
    return parameter_groups(model, optim.weight_decay, optim.layer_decay, decayed)


def copy_weights(model: nn.Module, *, trained: bool) -> Tensors:
    """Return copies of the parameters that are trained, or of those that are not, by name, fp32 on
    the CPU."""
    return {
        name: parameter.detach().float().cpu().clone()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad == trained
    }


def build_optimizer(config: Config, world: World, module: LossModule) -> torch.optim.Optimizer:
    """Build the optimizer over the parameters that DeepSpeed sees."""
    optim = config.optim
    if optim.opt == "lamb":
        return Lamb(module.groups, optim.scaled_lr, optim.opt_betas, optim.opt_eps)
    capturable = world.device.type == "cuda" and not config.run.offload_optimizer
    return build_adamw(
        module.groups, optim.scaled_lr, optim.opt_betas, optim.opt_eps, capturable=capturable
    )


def build_forward(config: Config, model: nn.Module, dtype: torch.dtype) -> ForwardPass:
    """Return the forward pass of a model: our `Student` gets patches and the plan's DropPath mask,
    a timm model gets images."""
    if isinstance(model, Student):
        return PlannedStudent(model.patch_size, dtype, count_copies(config))
    return SeededModel(config.run.seed, dtype, count_copies(config))


def build_utilisation(config: Config, world: World, model: nn.Module) -> Utilisation:
    """Return the model FLOPs of a sample and the peak of this rank's device in bf16, as far as they
    are known."""
    flops = count_flops(model, config.data.input_size)
    is_known = world.device.type == "cuda" and precision(config, world)[0] == "bf16"
    peak = find_peak(torch.cuda.get_device_name(world.device)) if is_known else None
    return Utilisation(flops and flops * count_copies(config), world.size, peak)


def count_copies(config: Config) -> int:
    """Return how many times the model sees a batch, each time with other DropPath masks."""
    return 2 if config.distill.cosub else 1


def build_criterion(config: Config) -> Criterion:
    """Build the loss of --distillation-type, --bce-loss, --cosub and --smoothing."""
    if config.distill.cosub:
        return CosubLoss()
    distill = config.distill
    return DistillationLoss(
        kind=distill.distillation_type,
        alpha=distill.distillation_alpha,
        tau=distill.distillation_tau,
        smoothing=config.mix.smoothing,
        legacy=distill.distillation_legacy,
        bce=distill.bce_loss,
    )


def note_schedule(config: Config, steps: int) -> list[str]:
    """Return notes on a learning rate and an EMA that do not fit a run of so many steps."""
    optim = config.optim
    notes = []
    if optim.min_lr > optim.scaled_lr and optim.min_lr != optim.lr:
        cure = "set --lr, or --unscale-lr"
        notes.append(f"the learning rate stays at {optim.describe_peak()}, under --min-lr: {cure}")
    if optim.warmup_epochs >= optim.epochs:
        lengths = f"{optim.warmup_epochs:g} epochs of warm-up, {optim.epochs} in all"
        notes.append(f"the learning rate never reaches its peak ({lengths}): set --warmup-epochs")
    half_life = math.log(0.5) / math.log(optim.model_ema_decay)
    if optim.model_ema and not optim.model_ema_warmup and half_life > steps / 5:
        share = f"{optim.model_ema_decay**steps:.0%} initial weights"
        memory = f"its half-life is {half_life:,.0f} steps, the run has {steps:,}"
        cure = "use --model-ema-warmup or a smaller --model-ema-decay"
        notes.append(f"the EMA will be {share} ({memory}): {cure}")
    return notes
