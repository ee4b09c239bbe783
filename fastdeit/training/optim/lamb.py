"""LAMB on flat partitions: one trust ratio for each parameter, wherever its elements are.

LAMB (arXiv 1904.00962) multiplies Adam's update of a parameter by ‖w‖ / ‖update‖. Under ZeRO a rank
has a flat tensor for each group, with pieces of parameters, so the squares of both norms are summed
over the ranks. A step has one all-reduce for each tensor with weight decay, of two numbers per
parameter. Formula: timm 1.0.31 optim/lamb.py with its defaults (bias correction, averaged
gradients, decay in the update, no trust ratio without weight decay), except that the clipping of
the global gradient norm is DeepSpeed's. It takes `found_inf` and `grad_scale` as torch's fused
AdamW does, so that the device skips and clips a step, and the host reads none of its values.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

CLIP_GRAD = 1.0
"""The largest global gradient norm with LAMB, unless another is chosen (timm's max_grad_norm)."""


@dataclass(frozen=True)
class Layout:
    """Places of the P parameters of a group in its flat tensor; tensors are int64, on its device.

    parameters: P. pieces: the place of each parameter that has elements here, in ascending order.
    present: (pieces,) the numbers of these parameters. owners, lengths: (S,) the parameter's number
    and the elements of each segment of the tensor; padding has the number P.
    """

    parameters: int
    pieces: Sequence[slice]
    present: torch.Tensor
    owners: torch.Tensor
    lengths: torch.Tensor

    def sum_squares(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the sum of the squares of each parameter's elements in flat tensors, fp32
        (len(tensors), P); 0 if there are none."""
        squares = tensors[0].new_zeros(len(tensors), self.parameters)
        if self.pieces:
            views = [tensor[piece] for tensor in tensors for piece in self.pieces]
            norms = torch.stack(torch._foreach_norm(views)).view(len(tensors), -1)
            squares.index_copy_(1, self.present, norms.square())
        return squares

    def spread(self, values: torch.Tensor, elements: int) -> torch.Tensor:
        """Return (elements,): the value (P,) of each element's parameter, 1 for padding."""
        padded = torch.cat((values, values.new_ones(1)))
        return padded[self.owners].repeat_interleave(self.lengths, output_size=elements)


def lay_out(places: Sequence[slice], flat: torch.Tensor) -> Layout:
    """Return the layout of a flat tensor; places: of every parameter of its group, in ascending
    order, empty where it has no element here."""
    pieces = {number: place for number, place in enumerate(places) if place.start < place.stop}
    owners = []
    lengths = []
    end = 0
    for number, piece in pieces.items():
        owners += [len(places), number]
        lengths += [piece.start - end, piece.stop - piece.start]
        end = piece.stop
    numbers = ([*pieces], [*owners, len(places)], [*lengths, flat.numel() - end])
    tensors = [torch.tensor(row, dtype=torch.int64, device=flat.device) for row in numbers]
    return Layout(len(places), [*pieces.values()], *tensors)


class Lamb(torch.optim.Optimizer):
    """LAMB over parameters, or after `bind` over flat tensors that hold pieces of them.

    groups: in torch's form. State of a tensor, as that of torch's fused AdamW: step, exp_avg,
    exp_avg_sq, all on its device.
    """

    found_inf: torch.Tensor | None = None
    """The flag of torch's fused AdamW, 0-d fp32 on the device: 1.0 skips the step."""
    grad_scale: torch.Tensor | None = None
    """The divisor of the gradients, as torch's fused AdamW has it, 0-d fp32 on the device."""

    def __init__(
        self, groups: Sequence[dict[str, Any]], lr: float, betas: tuple[float, float], eps: float
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0}
        super().__init__(list(groups), defaults)
        self._layouts: dict[torch.Tensor, Layout] = {}
        self._device = torch.device("cpu")

    def bind(self, places: Mapping[torch.Tensor, Sequence[slice]], device: torch.device) -> None:
        """Set where this rank's flat tensors have their parameters (see `lay_out`); device: that of
        collectives."""
        self._layouts = {flat: lay_out(of_flat, flat) for flat, of_flat in places.items()}
        self._device = device

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every tensor that has a gradient; after `bind` it is a collective."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for tensor in group["params"]:
                if tensor.grad is not None:
                    self._step_tensor(tensor, group)
        return loss

    def _step_tensor(self, tensor: torch.Tensor, group: dict[str, Any]) -> None:
        skipped = self._skip_flag(tensor.device)
        update = self._adam_update(tensor, group, skipped)
        if group["weight_decay"]:
            update.add_(tensor, alpha=group["weight_decay"])
            update.mul_(self._trust_ratios(tensor, update))
        # the update of a skipped step may be NaN
        tensor.sub_(torch.where(skipped, 0.0, update.mul_(group["lr"])))

    def _skip_flag(self, device: torch.device) -> torch.Tensor:
        if self.found_inf is None:
            return torch.zeros((), dtype=torch.bool, device=device)
        return self.found_inf.bool()

    def _adam_update(
        self, tensor: torch.Tensor, group: dict[str, Any], skipped: torch.Tensor
    ) -> torch.Tensor:
        """Advance the moments unless `skipped`; return Adam's update, without the learning rate."""
        state = self._state_of(tensor)
        beta1, beta2 = group["betas"]
        applied = (~skipped).float()
        state["step"] += applied
        gradient = self._gradient(tensor, skipped)
        state["exp_avg"].lerp_(gradient, (1 - beta1) * applied)
        kept = torch.where(skipped, 1.0, beta2)
        state["exp_avg_sq"].mul_(kept).addcmul_(gradient, gradient, value=1 - beta2)
        step = state["step"].double()
        root = state["exp_avg_sq"].sqrt().div_((1 - beta2**step).sqrt())
        return (state["exp_avg"] / (1 - beta1**step)).div_(root.add_(group["eps"]))

    def _state_of(self, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
        state = self.state[tensor]
        if not state:
            state["step"] = torch.zeros((), device=tensor.device)
            state["exp_avg"] = torch.zeros_like(tensor)
            state["exp_avg_sq"] = torch.zeros_like(tensor)
        return state

    def _gradient(self, tensor: torch.Tensor, skipped: torch.Tensor) -> torch.Tensor:
        """Return the scaled gradient; zeros if the step is skipped."""
        gradient = tensor.grad
        assert gradient is not None
        if self.grad_scale is not None:
            gradient = gradient / self.grad_scale
        return torch.where(skipped, 0.0, gradient)

    def _trust_ratios(self, tensor: torch.Tensor, update: torch.Tensor) -> torch.Tensor:
        """Return the factors of an update: one for a parameter, or one for each element of a flat
        tensor."""
        layout = self._layouts.get(tensor)
        if layout is None:
            return _divide_norms(tensor.norm(), update.norm())
        squares = layout.sum_squares([tensor, update]).to(self._device)
        if dist.get_world_size() > 1:
            dist.all_reduce(squares)
        norms = squares.to(tensor.device).sqrt()
        return layout.spread(_divide_norms(*norms), tensor.numel())


def _divide_norms(weight: torch.Tensor, update: torch.Tensor) -> torch.Tensor:
    """Return ‖w‖ / ‖update‖; 1 where either is 0."""
    return torch.where((weight > 0) & (update > 0), weight / update, 1.0)
