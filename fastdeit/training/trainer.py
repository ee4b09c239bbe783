"""The training step, and the state of a run that a checkpoint holds.

The step reads as the data flows: mix the pairs, ask the teacher, run the student with the planned
DropPath bits, the loss, DeepSpeed's backward and step, the average of the weights. Nothing here
waits for the device, what a step returns are tensors; DeepSpeed (0.19.8) waits in `engine.step()`
of each optimizer step: once for its check of the gradients, once for that of their norm, and with
clipping once more for each group.
"""

import copy
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from timm.scheduler.scheduler import Scheduler
from torch import nn

from fastdeit.data.batch import Batch
from fastdeit.distributed.world import import_deepspeed
from fastdeit.kernels.mix import mix
from fastdeit.kernels.mix_patches import mix_patches
from fastdeit.models.teacher import Teacher
from fastdeit.plan.digest import add_digests, show_digest
from fastdeit.training.flat import LossModule
from fastdeit.training.losses import DistillationLoss
from fastdeit.training.optim import Ema
from fastdeit.training.zero import open_partitions

LOSSES = ("loss", "base", "distill")
STATISTICS = (*LOSSES, "grad_norm")
"""What `Trainer.train_step` returns, in this order."""


class MicroStep(NamedTuple):
    """What is kept of a micro-batch until its optimizer step is over."""

    losses: torch.Tensor
    """fp32 (3,) on the device: means of `LOSSES`."""
    ordinals: torch.Tensor
    """int64 (B,) on the CPU."""
    image_index: torch.Tensor
    """int64 (B,) on the CPU."""
    digest: int


def build_engine(
    module: LossModule, optimizer: torch.optim.Optimizer, deepspeed_config: dict[str, Any]
) -> Any:
    """A DeepSpeed engine whose fp32 master weights are the model's own, not copies of bf16-rounded
    ones."""
    exact = {
        name: parameter.detach().float().cpu().clone()
        for name, parameter in module.model.named_parameters()
    }
    engine, *_ = import_deepspeed().initialize(
        model=module, optimizer=optimizer, config=deepspeed_config, dist_init_required=False
    )
    module.bind()
    if deepspeed_config["bf16"]["enabled"]:
        open_partitions(engine).install(exact)
    return engine


@dataclass
class Trainer:
    """A student under a DeepSpeed engine (ZeRO 1, 2 or 3), its teacher, loss, schedule and average,
    at some step."""

    engine: Any
    """Runs a `LossModule` (training/flat.py)."""
    eval_model: nn.Module
    """A second copy of the model on the device, in evaluation mode, which takes up the average when
    it is evaluated."""
    teacher: Teacher | None
    decode: Callable[[torch.Tensor], torch.Tensor] | None
    """From the records that batches bring to the teacher's answer; None: they bring none."""
    criterion: DistillationLoss
    schedule: Scheduler
    ema_decay: float | None
    seed: int
    rank: int
    dtype: torch.dtype
    step: int = 0
    skipped: int = 0
    digest: int = 0
    """Of the samples of all steps so far that this rank answers for: its own, and on rank 0 those
    of earlier processes."""

    def __post_init__(self) -> None:
        self.model: Any = self.engine.module.model
        self.partitions = open_partitions(self.engine)
        self.micro_steps: list[MicroStep] = []
        self._whole: nn.Module | None = None
        self._persistent = frozenset(self.eval_model.state_dict())
        self.takes_drop_path_mask = hasattr(self.model, "drop_path_rates")
        self.ema = (
            Ema(self.partitions.masters, self._buffers(), self.ema_decay)
            if self.ema_decay is not None
            else None
        )

    def train_step(self, micro_batches: Iterable[Batch]) -> torch.Tensor:
        """One optimizer step. Returns fp32 (4,) on the device: `STATISTICS`, the losses as means
        over this rank's samples, the norm of all ranks' gradient as it was before clipping.

        A loss or a gradient that is not finite on any rank leaves weights, moments, buffers and
        average as they are on all.
        """
        self.model.train()
        self.schedule.step_update(self.step)
        buffers = {name: buffer.clone() for name, buffer in self._buffers()}
        self.micro_steps = [self._micro_step(batch) for batch in micro_batches]
        if not self.applied:
            self.skipped += 1
            self.partitions.after_skip()
            _restore(self._buffers(), buffers)
        elif self.ema is not None:
            self.ema.update(self.partitions.masters, self._buffers())
        self.step += 1
        losses = torch.stack([done.losses for done in self.micro_steps]).mean(0)
        norm = torch.as_tensor(
            self.engine.get_global_grad_norm(), dtype=losses.dtype, device=losses.device
        )
        return torch.cat((losses, norm.view(1)))

    @property
    def applied(self) -> bool:
        """Whether the last step changed the weights; the same on every rank."""
        return bool(self.engine.was_step_applied())

    def skip_step(self) -> None:
        """Goes one step on without training."""
        self.schedule.step_update(self.step)
        self.skipped += 1
        self.step += 1

    def _micro_step(self, batch: Batch) -> MicroStep:
        self.digest = add_digests(self.digest, batch.digest)
        images, mixed = self._mix(batch)
        answer = self._answer(batch, mixed)
        if not self.takes_drop_path_mask:
            self._seed(batch)
        inputs = (images, batch.drop_path_mask) if self.takes_drop_path_mask else (images,)
        parts = self.engine(
            lambda model: self.criterion(model(*inputs), batch.labels, batch.lam, answer)
        )
        # DeepSpeed looks at the gradient alone, which may be finite where the loss is not
        self.engine.backward(
            parts.loss * torch.where(parts.loss.detach().isfinite(), 1.0, torch.nan)
        )
        self.engine.step()
        losses = torch.stack([part.detach().float() for part in parts])
        return MicroStep(losses, batch.ordinals, batch.image_index, batch.digest)

    def _mix(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What the model takes, for our student patches, and the mixed images for the teacher, if
        there is one."""
        if not self.takes_drop_path_mask:
            images = mix(batch.images, batch.lam, batch.box, self.dtype)
            return images, images
        asks = self.teacher is not None and batch.teacher_record is None
        return mix_patches(
            batch.images, batch.lam, batch.box, self.model.patch_size, self.dtype, with_images=asks
        )

    @torch.no_grad()
    def _answer(self, batch: Batch, mixed: torch.Tensor | None) -> torch.Tensor | None:
        """The teacher's, recorded if the batch brings it; else from the mixed images."""
        if batch.teacher_record is not None:
            assert self.decode is not None, "records need their decoder"
            return self.decode(batch.teacher_record)
        return self.teacher(mixed) if self.teacher is not None and mixed is not None else None

    def _seed(self, batch: Batch) -> None:
        """Let a timm model's own random draws follow from (seed, step, samples): who takes the same
        again repeats them."""
        key = hashlib.sha256(f"{self.seed} {self.step} {batch.digest}".encode()).digest()
        torch.manual_seed(int.from_bytes(key[:7], "little"))

    def _buffers(self) -> list[tuple[str, torch.Tensor]]:
        """The model's persistent buffers (a ConvNet's batch statistics) by name."""
        return [
            (name, buffer)
            for name, buffer in self.model.named_buffers()
            if name in self._persistent
        ]

    @property
    def lr(self) -> float:
        """The largest learning rate of the last step's groups (all are equal without layer decay)."""
        return max(group["lr"] for group in self.engine.optimizer.param_groups)

    def weights(self) -> dict[str, torch.Tensor]:
        """fp32 weights and the buffers by name, on the CPU; a collective."""
        return self.partitions.gather(self.partitions.masters) | _on_cpu(self._buffers())

    def ema_weights(self) -> dict[str, torch.Tensor] | None:
        """The average's weights and buffers by name, on the CPU; None without an average; a
        collective."""
        if self.ema is None:
            return None
        return self.partitions.gather(self.ema.flats) | _on_cpu(self.ema.buffers.items())

    def module(self) -> nn.Module:
        """The model in evaluation mode and the training precision; at ZeRO 3, which keeps its
        weights in pieces, a whole copy.

        A collective.
        """
        module = self.model.eval()
        if self.engine.zero_optimization_stage() < 3:
            return module
        if self._whole is None:
            self._whole = copy.deepcopy(self.eval_model)
        self._whole.load_state_dict(self.weights())
        return self._whole

    def ema_module(self) -> nn.Module | None:
        """The model holding the average, in evaluation mode and the training precision; a
        collective."""
        weights = self.ema_weights()
        if weights is None:
            return None
        self.eval_model.load_state_dict(weights)
        return self.eval_model

    def state(self) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, Any]]:
        """What a checkpoint holds of training: tensors by set and name, and JSON values; a
        collective."""
        adam_step, exp_avg, exp_avg_sq = self.partitions.moments()
        tensors = {
            "model": self.weights(),
            "exp_avg": self.partitions.gather(exp_avg),
            "exp_avg_sq": self.partitions.gather(exp_avg_sq),
        }
        average = self.ema_weights()
        if average is not None:
            tensors["ema"] = average
        state = {"step": self.step, "adam_step": adam_step, "skipped": self.skipped}
        return tensors, state | {"digest": show_digest(self.whole_digest())}

    def whole_digest(self) -> int:
        """Of the samples of all steps so far, of all ranks; a collective."""
        digests = [0] * dist.get_world_size()
        dist.all_gather_object(digests, self.digest)
        return add_digests(*digests)

    def layout(self) -> dict[str, dict[str, torch.Tensor]]:
        """The names, shapes and dtypes of what `state` gives, as tensors without memory."""
        parameters = {
            name: torch.empty(parameter.shape, dtype=torch.float32, device="meta")
            for name, parameter in self.eval_model.named_parameters()
        }
        model = parameters | {name: buffer.to("meta") for name, buffer in self._buffers()}
        layout = {"model": model, "exp_avg": parameters, "exp_avg_sq": parameters}
        return layout if self.ema is None else layout | {"ema": model}

    def load_state(
        self, tensors: dict[str, dict[str, torch.Tensor]], state: dict[str, Any]
    ) -> None:
        """Takes up what `state` gave, of any world size or stage. Raises ValueError if the
        parameters differ."""
        model, wanted = tensors["model"], self.eval_model.state_dict()
        if {name: value.shape for name, value in model.items()} != {
            name: value.shape for name, value in wanted.items()
        }:
            raise ValueError(
                f"the checkpoint's parameters are not those of {type(self.model).__name__} as configured"
            )
        self.partitions.install(model)
        self.partitions.install_moments(
            state["adam_step"], tensors["exp_avg"], tensors["exp_avg_sq"]
        )
        _restore(self._buffers(), model)
        if self.ema is not None:
            average = tensors.get("ema", model)
            self.partitions.scatter(average, self.ema.flats)
            _restore(self.ema.buffers.items(), average)
        self.step, self.skipped = state["step"], state["skipped"]
        self.digest = int(state.get("digest", "0"), 16) if self.rank == 0 else 0


def _on_cpu(buffers: Iterable[tuple[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {name: buffer.detach().cpu().clone() for name, buffer in buffers}


def _restore(buffers: Iterable[tuple[str, torch.Tensor]], saved: dict[str, torch.Tensor]) -> None:
    for name, buffer in buffers:
        buffer.copy_(saved[name])
