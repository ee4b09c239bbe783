"""Memory of a computation, counted from the tensors that it makes; they need not have values."""

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from fastdeit.models.execution.memory import MemoryMeter
from fastdeit.training.zero.flat import Compute


@contextlib.contextmanager
def fused_attention() -> Iterator[None]:
    """Run torch's attention on the meta device as the devices run it, without the matrix of all
    weights; attention with a mask does not change."""
    plain = F.scaled_dot_product_attention

    def attend(*inputs: Any, **others: Any) -> torch.Tensor:
        if len(inputs) == 3 and others.get("attn_mask") is None:
            return torch.ops.aten._scaled_dot_product_flash_attention(*inputs)[0]
        return plain(*inputs, **others)

    # not a mode of torch: it would be off in what a backward pass computes again
    F.scaled_dot_product_attention = attend  # type: ignore[assignment]
    try:
        yield
    finally:
        F.scaled_dot_product_attention = plain


class StepUsage(NamedTuple):
    """Bytes of the tensors of a micro-batch, without weights and inputs."""

    activations: int
    """The bytes that are stored from the forward to the backward pass."""
    peak: int
    """The largest number of bytes at once, with what the backward pass makes, the gradients too."""


class _Scope(nn.Module):
    """A model whose weights are replaced while both passes run: a checkpoint reads them again."""

    def __init__(self, model: nn.Module, meter: MemoryMeter) -> None:
        super().__init__()
        self.model = model
        self.meter = meter

    def forward(self, compute: Compute) -> StepUsage:
        loss = compute(self.model).loss
        stored = self.meter.live
        leaves = [weight for weight in self.model.parameters() if weight.requires_grad]
        gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
        del gradients
        return StepUsage(stored, self.meter.peak)


def measure_step(model: nn.Module, compute: Compute, dtype: torch.dtype) -> StepUsage:
    """Return the memory of the forward and backward pass of a micro-batch, by one pass on torch's
    meta device; the model does not change.

    compute: computes the loss of a model for a micro-batch on the meta device. dtype: the training
    precision.
    """
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    state = {
        f"model.{name}": _to_meta(tensor, dtype).requires_grad_(tensor.requires_grad)
        for name, tensor in named.items()
    }
    meter = MemoryMeter()
    was_training = model.training
    try:
        scope = _Scope(model, meter).train()
        with torch.random.fork_rng(devices=[]), meter:
            return torch.func.functional_call(scope, state, (compute,))
    finally:
        model.train(was_training)


def _to_meta(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return a tensor's shape, of floating point in the training precision."""
    return tensor.detach().to("meta", dtype if tensor.is_floating_point() else tensor.dtype)
