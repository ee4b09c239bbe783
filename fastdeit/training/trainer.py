"""The training step: from the micro-batches of a rank to new weights and statistics.

`Trainer.train_step` is the whole of it, and the methods below it are in the order of their calls:
set the rates; for each micro-batch mix the pairs, run or look up the teacher, run the student, the
loss and backward (training/forward.py, training/losses.py); then update the weights
(training/zero/update.py) and the EMA. What a step returns are tensors on the device; the host
learns whether a step was applied after it has launched the next one.
"""

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from timm.scheduler.scheduler import Scheduler

from fastdeit.data.loaders.batch import Batch
from fastdeit.kernels.backend import use_backend
from fastdeit.models.teachers.ensemble import LiveTeacher
from fastdeit.plan.digest import add_digests
from fastdeit.training.forward import ForwardPass, MicroLoss
from fastdeit.training.graphs.graph import Graphs, Run, run_eagerly
from fastdeit.training.losses import Criterion
from fastdeit.training.staging import StagedFlags
from fastdeit.training.state import TrainerState
from fastdeit.training.zero.update import Update

LOSSES = ("loss", "base", "distill")
"""The names of the losses of a micro-batch."""
STATISTICS = (*LOSSES, "grad_norm")
"""The names of what `Trainer.train_step` returns, in this order."""


class MicroStep(NamedTuple):
    """Record of a micro-batch until its optimizer step is over."""

    losses: torch.Tensor
    """The means of `LOSSES`, fp32 (3,) on the device."""
    ordinals: torch.Tensor
    """The ordinals of the samples, int64 (B,) on the CPU."""
    image_index: torch.Tensor
    """The rows of the images in the index, int64 (B,) on the CPU."""
    digest: int
    """The digest of the samples."""


@dataclass(frozen=True)
class LaunchedStep:
    """A step whose work the device may not have done yet."""

    step: int
    micro_steps: list[MicroStep]
    flags: StagedFlags
    flag: int
    """The number of the flag that is 1.0 if the step was skipped."""

    @functools.cached_property
    def applied(self) -> bool:
        """Return True if the step changed the weights, the same on every rank; the first call waits
        for the device to finish the step."""
        return not self.flags.read(self.flag)


@dataclass
class Trainer:
    """The state of a run and what changes it: forward pass, teacher, loss, update and schedule."""

    state: TrainerState
    update: Update
    forward: ForwardPass
    teacher: LiveTeacher | None
    decode: Callable[[torch.Tensor], torch.Tensor] | None
    """A function from a batch's teacher records to the teacher's output; None: batches hold no
    records."""
    criterion: Criterion
    schedule: Scheduler
    kernels: str = "auto"
    """The backend of the kernels in this trainer's steps (kernels/backend.py)."""
    graphs: Graphs | None = None
    """The graphs that run the teacher, the student, its backward pass and the update; None: these
    run without graphs."""
    _flags: StagedFlags = field(init=False)
    _last: LaunchedStep | None = None

    def __post_init__(self) -> None:
        self._flags = StagedFlags(self.state.engine.device)

    @property
    def engine(self) -> Any:
        """Return the DeepSpeed engine."""
        return self.state.engine

    @property
    def step(self) -> int:
        """Return the number of the next step."""
        return self.state.step

    @property
    def last(self) -> LaunchedStep:
        """Return the last step that was trained; there must be one."""
        assert self._last is not None, "no step was trained"
        return self._last

    @property
    def micro_steps(self) -> list[MicroStep]:
        """Return the micro-batches of the last step that was trained."""
        return self.last.micro_steps

    @property
    def applied(self) -> bool:
        """Return True if the last step changed the weights, the same on every rank; waits for
        it."""
        return self.last.applied

    @property
    def lr(self) -> float:
        """Return the largest learning rate of the last step's groups: layer decay lowers some."""
        return max(self._rates())

    def train_step(
        self, micro_batches: Iterable[Batch], criterion: Criterion | None = None
    ) -> torch.Tensor:
        """Launch one optimizer step; the step before it is over when this returns.

        Returns fp32 (4,) on the device: `STATISTICS`, the losses as means over this rank's samples,
        the norm of all ranks' gradient as it was before clipping, infinite if the step is skipped.

        criterion: in place of the trainer's own, for this step.

        A loss or a gradient that is not finite on any rank leaves weights, moments, buffers and EMA
        unchanged on all ranks.
        """
        self._prepare()
        with use_backend(self.kernels):
            micro_steps = [
                self._micro_step(number, batch, criterion or self.criterion)
                for number, batch in enumerate(micro_batches)
            ]
        self._finish(self._run)
        self._note_launch(micro_steps)
        losses = average_micro_batches([micro.losses for micro in micro_steps])
        return torch.cat((losses, self.update.grad_norm.view(1)))

    def _prepare(self) -> None:
        """Prepare the next step: modes, buffers, learning rates."""
        self.state.prepare_step()
        self.schedule.step_update(self.state.step)
        self.update.set_rates(self._rates())

    def _micro_step(self, number: int, batch: Batch, criterion: Criterion) -> MicroStep:
        """Run forward and backward of a micro-batch, and reduce its gradient; return its record."""
        state = self.state
        state.digest = add_digests(state.digest, batch.digest)
        loss = self._loss_of(batch, criterion)
        self.forward.seed(batch, state.step)
        # the graphs have the trainer's own criterion
        run = self._run if criterion is self.criterion else run_eagerly
        losses = self._run_backward(run, loss, number)
        self.update.reduce(number)
        return MicroStep(losses, batch.ordinals, batch.image_index, batch.digest)

    def _loss_of(self, batch: Batch, criterion: Criterion) -> MicroLoss:
        """Mix a micro-batch, run or look up the teacher; return the loss that remains to be
        computed."""
        needs_teacher = self.teacher is not None and batch.teacher_record is None
        inputs, images = self.forward.mix(batch, with_images=needs_teacher)
        teacher_output = self._teacher_output(batch, images)
        tensors = (inputs, batch.labels, batch.lam, batch.drop_path_mask, teacher_output)
        return MicroLoss(self.forward, criterion, tensors)

    @torch.no_grad()
    def _teacher_output(self, batch: Batch, images: torch.Tensor | None) -> torch.Tensor | None:
        """Return the recorded output if the batch has one, else the output for the mixed images."""
        if batch.teacher_record is not None:
            assert self.decode is not None, "teacher records need their decoder"
            return self.decode(batch.teacher_record)
        if self.teacher is None or images is None:
            return None
        # a Python function may do something else at each call, which a graph would not repeat
        is_network = getattr(self.teacher, "is_network", False)
        run = self._run if is_network else run_eagerly
        return run("teacher", self.teacher, images)

    def _run_backward(self, run: Run, loss: MicroLoss, number: int) -> Any:
        """Run forward and backward of a micro-batch; return its losses, as `Update.backward`."""
        name = "first micro-batch" if number == 0 else "later micro-batches"

        def backward(*tensors: torch.Tensor | None) -> torch.Tensor:
            return self.update.backward(loss.with_tensors(tensors), number)

        return run(name, backward, *loss.tensors)

    def _finish(self, run: Run) -> None:
        """Update weights, moments, buffers and EMA from the gradients."""
        if dist.get_world_size() > 1:
            self._finish_parts(run)
        else:
            run("update", functools.partial(self._finish_parts, run_eagerly))

    def _finish_parts(self, run: Run) -> None:
        """Do the work of `_finish`; run: calls those functions in it that are no collectives."""
        self.update.step(run)
        run("EMA", functools.partial(self.state.finish_step, self.update.skipped))

    def _note_launch(self, micro_steps: list[MicroStep]) -> None:
        """Record the step that was just launched, then wait for the step before it: its flag is
        read before the second step after it reuses the place."""
        before = self._last
        flag = self._flags.send(self.update.skipped)
        self._last = LaunchedStep(self.state.step, micro_steps, self._flags, flag)
        self.state.step += 1
        if before is not None:
            before.applied  # noqa: B018

    def skip_step(self) -> None:
        """Advance by one step without training."""
        self.schedule.step_update(self.state.step)
        self.state.step += 1

    def record_graphs(self, batch: Batch) -> None:
        """Record the graphs of the steps to come, if there are any; no bit of the state changes.

        batch: a micro-batch with the shapes and dtypes of those to come. A collective.
        """
        if self.graphs is None:
            return
        self._prepare()
        with use_backend(self.kernels):
            loss = self._loss_of(batch, self.criterion)
            for number in range(min(2, self.update.micro_steps)):
                self._run_backward(self.graphs.record, loss, number)
        self._finish(self.graphs.record)

    @property
    def _run(self) -> Run:
        return run_eagerly if self.graphs is None else self.graphs.run

    def _rates(self) -> list[float]:
        """Return the learning rate of each group in the last step."""
        return [group["lr"] for group in self.schedule.optimizer.param_groups]


def average_micro_batches(values: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the mean of the losses of a rank's micro-batches, each fp32 (K,), as in the log."""
    return values[0] if len(values) == 1 else torch.stack(tuple(values)).mean(0)


class StepStatistics(NamedTuple):
    """Statistics of a trained step."""

    step: int
    lr: float
    values: list[float]
    """The `STATISTICS` over all ranks, fp32 numbers."""

    @property
    def applied(self) -> bool:
        """Return False if the step was skipped, as its loss or gradient was not finite."""
        return math.isfinite(self.values[STATISTICS.index("grad_norm")])


class Meter:
    """Statistics of steps, which remain on the device until they are read."""

    def __init__(self) -> None:
        self._steps: list[tuple[int, float]] = []
        self._values: list[torch.Tensor] = []

    def add(self, step: int, lr: float, values: torch.Tensor) -> None:
        """Add the statistics of a step without a wait for the device; values: fp32 (K,), of this
        rank.

        All ranks add the same steps.
        """
        self._steps.append((step, lr))
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
