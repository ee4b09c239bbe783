"""Model and loss as DeepSpeed runs them: at ZeRO 1 and 2 with one flat parameter for each group.

DeepSpeed (0.19.8) handles each parameter by itself: a hook that copies its gradient, a check for
NaN, a norm. For the 143 parameters of a DeiT that is 2,200 of a step's 3,300 launches. So here
DeepSpeed sees a flat parameter for each group of the optimizer; the model's weights are views of
it. Model and loss are one autograd node: its backward copies the gradients of all weights into flat
ones in one call, so that one hook runs for each group. The results equal those of single parameters
bit for bit. The cost is memory for a second copy of all gradients in the training precision, at a
time when the activations are already free. All of this is for DeepSpeed's own step; ours
(zero/flat_update.py) uses only the views, and neither the node nor a hook runs. At ZeRO 3 every
rank holds a piece of each weight, and the parameters are the model's own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fastdeit.kernels.distill import LossParts

Compute = Callable[[nn.Module], LossParts]
"""A function from the model to the losses of a micro-batch; the first of them is differentiated."""
Groups = list[dict[str, Any]]
"""Parameter groups in torch's form."""


@dataclass(frozen=True)
class ContiguousSlot:
    """Place of a parameter in its group's flat tensor: consecutive elements (ZeRO 1 and 2)."""

    name: str
    shape: torch.Size
    offset: int

    def of(self, flat: torch.Tensor) -> torch.Tensor:
        """Return a view of the parameter in a flat tensor (elements,)."""
        return flat[self.offset : self.offset + self.shape.numel()].view(self.shape)

    def locate(self, rank: int, elements: int) -> slice:
        """Return the place of the parameter's elements in the partition of a rank, which has so
        many elements; an empty slice if it has none."""
        first = self.offset - rank * elements
        last = min(first + self.shape.numel(), elements)
        return slice(max(first, 0), max(first, last, 0))

    def read(self, parts: torch.Tensor) -> torch.Tensor:
        """Return a copy of the parameter from all ranks' partitions (ranks, elements)."""
        return self.of(parts.view(-1)).clone()

    def write(self, parts: torch.Tensor, value: torch.Tensor) -> None:
        """Write the parameter's `value` into all ranks' partitions (ranks, elements)."""
        self.of(parts.view(-1)).copy_(value)


class LossModule(nn.Module):
    """A model that computes its loss inside the module that DeepSpeed runs, with parameters of its
    own."""

    def __init__(self, model: nn.Module, groups: Groups) -> None:
        super().__init__()
        self.model = model
        self.groups = groups
        """Groups in torch's form; "params" are the parameters that DeepSpeed sees."""

    def forward(self, compute: Compute) -> LossParts:
        return compute(self.model)

    def bind(self) -> None:
        """Point the model to the weights that DeepSpeed trains; call once after
        `deepspeed.initialize`, which moves them."""


class FlatLossModule(LossModule):
    """A model whose weights are views of one flat parameter for each group; DeepSpeed sees only
    these.

    groups: parameters of the model, in the order in which the flat ones hold them. Other parameters
    of the model are not trained.
    """

    def __init__(self, model: nn.Module, groups: Groups) -> None:
        super().__init__(model, [])
        names = {parameter: name for name, parameter in model.named_parameters()}
        self.slots = [_lay_out(group["params"], names) for group in groups]
        self.flats = nn.ParameterList(_flatten(group["params"]) for group in groups)
        self.leaves: list[nn.Parameter] = []
        """The model's weights, group after group."""
        for group, flat in zip(groups, self.flats, strict=True):
            self.groups.append(group | {"params": [flat]})
            self.leaves += group["params"]

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Any:
        """Yield only the flat parameters, by name."""
        return self.flats.named_parameters(prefix, recurse, remove_duplicate)

    def bind(self) -> None:
        views = self.views([flat.data for flat in self.flats])
        for leaf, view in zip(self.leaves, views, strict=True):
            leaf.data = view
        # frozen ones get the training precision too
        for parameter in self.model.parameters():
            parameter.data = parameter.data.to(self.flats[0].dtype)

    def forward(self, compute: Compute) -> LossParts:
        return LossParts(*_Loss.apply(self, compute, *self.flats))

    def flat_gradients(self, gradients: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Copy the gradients of `leaves` into one flat tensor for each group, of the weights'
        dtype."""
        flats = [torch.empty_like(flat) for flat in self.flats]
        torch._foreach_copy_(self.views(flats), list(gradients))
        return flats

    def views(self, flats: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return views of the weights `leaves` in flat tensors, one for each group, which may be
        padded."""
        views = []
        for flat, slots in zip(flats, self.slots, strict=True):
            views += [slot.of(flat) for slot in slots]
        return views


class _Loss(torch.autograd.Function):
    """The loss as a function of the flat parameters; the model's own graph is stored inside."""

    @staticmethod
    def forward(
        ctx: Any, module: FlatLossModule, compute: Compute, *flats: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        with torch.enable_grad():
            parts = compute(module.model)
        ctx.module = module
        ctx.loss = parts.loss
        loss, *others = (part.detach() for part in parts)
        ctx.mark_non_differentiable(*others)
        return loss, *others

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor, *_: Any) -> tuple[torch.Tensor | None, ...]:
        module = ctx.module
        # a weight that the loss does not depend on has a gradient of zero
        gradients = torch.autograd.grad(
            ctx.loss, module.leaves, gradient, allow_unused=True, materialize_grads=True
        )
        return None, None, *module.flat_gradients(gradients)


def _flatten(parameters: Sequence[nn.Parameter]) -> nn.Parameter:
    return nn.Parameter(torch.cat([parameter.detach().flatten() for parameter in parameters]))


def _lay_out(
    parameters: Sequence[nn.Parameter], names: dict[nn.Parameter, str]
) -> list[ContiguousSlot]:
    slots = []
    offset = 0
    for parameter in parameters:
        slots.append(ContiguousSlot(names[parameter], parameter.shape, offset))
        offset += parameter.numel()
    return slots
