"""The training step: from the micro-batches of a rank to new weights and statistics.

It reads as the data flows: mix the pairs, run or look up the teacher, run the student, the loss,
DeepSpeed's backward and step, the EMA. What a step returns are tensors on the device.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from timm.scheduler.scheduler import Scheduler

from fastdeit.data.loaders.batch import Batch
from fastdeit.kernels.backend import use_backend
from fastdeit.kernels.distill import LossParts
from fastdeit.models.teachers.ensemble import LiveTeacher
from fastdeit.plan.digest import add_digests
from fastdeit.training.forward import ForwardPass
from fastdeit.training.losses import Criterion
from fastdeit.training.state import TrainerState

LOSSES = ("loss", "base", "distill")
STATISTICS = (*LOSSES, "grad_norm")
"""Names of what `Trainer.train_step` returns, in this order."""


class MicroStep(NamedTuple):
    """Record of a micro-batch until its optimizer step is over."""

    losses: torch.Tensor
    """fp32 (3,) on the device: means of `LOSSES`."""
    ordinals: torch.Tensor
    """int64 (B,) on the CPU."""
    image_index: torch.Tensor
    """int64 (B,) on the CPU."""
    digest: int


@dataclass
class Trainer:
    """The state of a run and what changes it: forward pass, teacher, loss and schedule."""

    state: TrainerState
    forward: ForwardPass
    teacher: LiveTeacher | None
    decode: Callable[[torch.Tensor], torch.Tensor] | None
    """Maps a batch's teacher records to the teacher's output; None: batches hold no records."""
    criterion: Criterion
    schedule: Scheduler
    kernels: str = "auto"
    """The backend of the kernels in this trainer's steps (kernels/backend.py)."""
    micro_steps: list[MicroStep] = field(default_factory=list)
    """Of the last step."""

    @property
    def engine(self) -> Any:
        """Return the DeepSpeed engine."""
        return self.state.engine

    @property
    def step(self) -> int:
        """Number of the next step."""
        return self.state.step

    @property
    def applied(self) -> bool:
        """True if the last step changed the weights; the same on every rank."""
        return bool(self.engine.was_step_applied())

    @property
    def lr(self) -> float:
        """Return the largest learning rate of the last step's groups: layer decay lowers some."""
        return max(group["lr"] for group in self.engine.optimizer.param_groups)

    def train_step(
        self, micro_batches: Iterable[Batch], criterion: Criterion | None = None
    ) -> torch.Tensor:
        """Train one optimizer step. Returns fp32 (4,) on the device: `STATISTICS`, the losses as
        means over this rank's samples, the norm of all ranks' gradient as it was before clipping.

        criterion: in place of the trainer's own, for this step.

        A loss or a gradient that is not finite on any rank leaves weights, moments, buffers and EMA
        unchanged on all ranks.
        """
        state = self.state
        state.set_training_mode()
        self.schedule.step_update(state.step)
        buffers = {name: buffer.clone() for name, buffer in state.buffers().items()}
        with use_backend(self.kernels):
            self.micro_steps = [
                self._micro_step(batch, criterion or self.criterion) for batch in micro_batches
            ]
        if self.applied:
            state.average_buffers()
            state.update_ema()
        else:
            state.skipped += 1
            state.undo_step(buffers)
        state.step += 1
        losses = torch.stack([micro.losses for micro in self.micro_steps]).mean(0)
        norm = torch.as_tensor(
            self.engine.get_global_grad_norm(), dtype=losses.dtype, device=losses.device
        )
        return torch.cat((losses, norm.view(1)))

    def skip_step(self) -> None:
        """Advance by one step without training."""
        self.schedule.step_update(self.state.step)
        self.state.skipped += 1
        self.state.step += 1

    def _micro_step(self, batch: Batch, criterion: Criterion) -> MicroStep:
        state = self.state
        state.digest = add_digests(state.digest, batch.digest)
        needs_teacher = self.teacher is not None and batch.teacher_record is None
        inputs, images = self.forward.mix(batch, with_images=needs_teacher)
        teacher_output = self._teacher_output(batch, images)

        def compute_loss(model: Any) -> LossParts:
            outputs = self.forward.run(model, inputs, batch, state.step)
            return criterion(outputs, batch.labels, batch.lam, teacher_output)

        parts = self.engine(compute_loss)
        # DeepSpeed checks the gradient alone, which may be finite where the loss is not
        poison = torch.where(parts.loss.detach().isfinite(), 1.0, torch.nan)
        self.engine.backward(parts.loss * poison)
        # the only sync points of a step, at the last micro-batch, in DeepSpeed (0.19.8): one checks
        # the gradients, one their norm, and with clipping one for each group
        self.engine.step()
        losses = torch.stack([part.detach().float() for part in parts])
        return MicroStep(losses, batch.ordinals, batch.image_index, batch.digest)

    @torch.no_grad()
    def _teacher_output(self, batch: Batch, images: torch.Tensor | None) -> torch.Tensor | None:
        """Return the recorded output if the batch has one, else the output for the mixed images."""
        if batch.teacher_record is not None:
            assert self.decode is not None, "teacher records need their decoder"
            return self.decode(batch.teacher_record)
        if self.teacher is None or images is None:
            return None
        return self.teacher(images)


class StepStatistics(NamedTuple):
    """Statistics of a trained step."""

    step: int
    applied: bool
    """False if the step was skipped, as its loss or gradient was not finite."""
    lr: float
    values: list[float]
    """`STATISTICS`, over all ranks: fp32 numbers."""


class Meter:
    """Statistics of steps, kept on the device until they are read."""

    def __init__(self) -> None:
        self._steps: list[tuple[int, bool, float]] = []
        self._values: list[torch.Tensor] = []

    def add(self, step: int, applied: bool, lr: float, values: torch.Tensor) -> None:
        """Add the statistics of a step without a wait for the device; values: fp32 (K,), of this
        rank.

        All ranks add the same steps.
        """
        self._steps.append((step, applied, lr))
        self._values.append(values.clone())

    def read(self) -> list[StepStatistics]:
        """Return the steps since the last call, their values as means over all ranks.

        If there are any, it is a collective that waits for the device.
        """
        if not self._values:
            return []
        steps = self._steps
        means = torch.stack(self._values) / dist.get_world_size()
        self._steps = []
        self._values = []
        dist.all_reduce(means)
        return [StepStatistics(*of, row) for of, row in zip(steps, means.tolist(), strict=True)]
