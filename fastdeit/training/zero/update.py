"""The two ways from the losses of micro-batches to new weights.

`FlatUpdate` (zero/flat_update.py) is ours, for ZeRO 1 and 2: no launch for a single parameter, and
no wait. `DeepSpeedUpdate` is DeepSpeed's own, for ZeRO 3, for an offloaded optimizer, and for a
user's settings of DeepSpeed, whose monitors and profilers belong to its step. At ZeRO 1 and 2 both
compute the same.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from fastdeit.training.graphs.graph import Run, run_eagerly
from fastdeit.training.zero.flat import Compute
from fastdeit.training.zero.partitions import Partitions


class Update(ABC):
    """Interface of both ways. In a step a trainer calls `set_rates`; `backward` and `reduce` for
    each micro-batch; `step`."""

    micro_steps: int
    """The number of micro-batches of a step."""

    skipped: torch.Tensor
    """The flag of the last step, 0-d fp32 on the device: 1.0 if the step did not change weights and
    moments, as a loss or a gradient was not finite on any rank, else 0.0."""
    grad_norm: torch.Tensor
    """The norm of all ranks' gradient in the last step, before clipping, 0-d fp32 on the device;
    infinite if the step was skipped."""

    @abstractmethod
    def set_rates(self, rates: Sequence[float]) -> None:
        """Set the learning rate of each group, rounded to fp32, for the next step."""

    @abstractmethod
    def backward(self, compute: Compute, number: int) -> torch.Tensor:
        """Run forward and backward of a micro-batch and add its gradient to this rank's.

        number: that of the micro-batch in its step, from 0; all from 1 on are treated alike.
        Returns `LossParts` as fp32 (3,) on the device.
        """

    @abstractmethod
    def reduce(self, number: int) -> None:
        """Sum over the ranks what is due after micro-batch `number`; a collective."""

    @abstractmethod
    def step(self, run: Run = run_eagerly) -> None:
        """Update weights and moments with the mean of the gradients; a collective.

        run: calls those functions in it that are no collectives.
        """


class DeepSpeedUpdate(Update):
    """DeepSpeed's backward and step; the host waits for the device in `step`'s checks."""

    def __init__(self, engine: Any, partitions: Partitions) -> None:
        self._engine = engine
        self._partitions = partitions
        self.micro_steps = engine.gradient_accumulation_steps()
        self.skipped = torch.zeros((), device=engine.device)
        self.grad_norm = torch.zeros((), device=engine.device)

    def set_rates(self, rates: Sequence[float]) -> None:
        for group, rate in zip(self._engine.optimizer.param_groups, rates, strict=True):
            group["lr"] = float(np.float32(rate))

    def backward(self, compute: Compute, number: int) -> torch.Tensor:
        # a collective, as DeepSpeed's hooks reduce
        parts = self._engine(compute)
        # DeepSpeed checks the gradient alone, which may be finite where the loss is not
        poison = torch.where(parts.loss.detach().isfinite(), 1.0, torch.nan)
        self._engine.backward(parts.loss * poison)
        # updates the weights at the last micro-batch of a step
        self._engine.step()
        return torch.stack([part.detach().float() for part in parts])

    def reduce(self, number: int) -> None:
        pass

    def step(self, run: Run = run_eagerly) -> None:
        applied = self._engine.was_step_applied()
        if not applied:
            self._partitions.after_skip()
        self.skipped.fill_(0.0 if applied else 1.0)
        self.grad_norm.copy_(torch.as_tensor(self._engine.get_global_grad_norm()))
