"""DeepSpeed's flat partitions under parameter names: the only file that touches DeepSpeed's privates.

At ZeRO 1 and 2 each parameter group is one flat fp32 buffer (the master weights), cut into equal partitions, one a rank;
Adam's moments and our EMA have the same layout. Here they become plain dicts of full tensors by parameter name, and back,
so that a checkpoint knows nothing of stage or world size. Written against deepspeed/runtime/zero/stage_1_and_2.py of
0.19.8; `Partitions` fails at once when a later version lacks what it needs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

_NEEDED = (
    *("single_partition_of_fp32_groups", "round_robin_bit16_groups", "round_robin_bit16_offsets"),
    *("partition_size", "optimizer", "update_lp_params"),
)


@dataclass(frozen=True)
class _Slot:
    """Where one parameter lies in the flat buffer of its group."""

    name: str
    shape: torch.Size
    offset: int


class Partitions:
    """This rank's partitions of a DeepSpeed engine's master weights and Adam moments, one flat fp32 tensor a group."""

    def __init__(self, engine: Any) -> None:
        self._zero = engine.optimizer
        missing = [name for name in _NEEDED if not hasattr(self._zero, name)]
        if missing:
            raise RuntimeError(f"this DeepSpeed is not supported: its ZeRO optimizer has no {', '.join(missing)}")
        names = {parameter: name for name, parameter in engine.module.named_parameters()}
        groups = zip(self._zero.round_robin_bit16_groups, self._zero.round_robin_bit16_offsets, strict=True)
        self._slots = [
            [_Slot(names[parameter], parameter.shape, int(offset)) for parameter, offset in zip(*group, strict=True)]
            for group in groups
        ]

    @property
    def masters(self) -> list[torch.Tensor]:
        """fp32 master weights, this rank's part, one flat tensor a group; changed in place by the optimizer."""
        return [partition.data for partition in self._zero.single_partition_of_fp32_groups]

    def gather(self, flats: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Full fp32 CPU tensors by parameter name from flat tensors laid out as `masters`; a collective."""
        named: dict[str, torch.Tensor] = {}
        for slots, flat in zip(self._slots, flats, strict=True):
            full = torch.empty(flat.numel() * dist.get_world_size(), dtype=flat.dtype, device=flat.device)
            dist.all_gather_into_tensor(full, flat.contiguous())
            full = full.cpu()
            named |= {slot.name: _take(full, slot).clone() for slot in slots}
        return named

    def scatter(self, named: dict[str, torch.Tensor], flats: Sequence[torch.Tensor]) -> None:
        """Writes this rank's part of full tensors by parameter name into flat tensors laid out as `masters`."""
        for slots, flat in zip(self._slots, flats, strict=True):
            full = torch.zeros(flat.numel() * dist.get_world_size(), dtype=flat.dtype)
            for slot in slots:
                _take(full, slot).copy_(named[slot.name])
            flat.copy_(full.view(dist.get_world_size(), -1)[dist.get_rank()])

    def install(self, named: dict[str, torch.Tensor]) -> None:
        """Sets the master weights, and the model's own copies from them; a collective."""
        self.scatter(named, self.masters)
        self._zero.update_lp_params()

    def moments(self) -> tuple[int, list[torch.Tensor], list[torch.Tensor]]:
        """Adam's step and this rank's first and second moments; zeros before the first step."""
        states = [self._zero.optimizer.state[group] for group in self._zero.single_partition_of_fp32_groups]
        if not all(states):
            zeros = [[torch.zeros_like(master) for master in self.masters] for _ in range(2)]
            return 0, zeros[0], zeros[1]
        return int(states[0]["step"]), [state["exp_avg"] for state in states], [state["exp_avg_sq"] for state in states]

    def install_moments(self, step: int, exp_avg: dict[str, torch.Tensor], exp_avg_sq: dict[str, torch.Tensor]) -> None:
        """Sets Adam's step and moments from full tensors by parameter name."""
        if step == 0:
            return
        first, second = ([torch.zeros_like(master) for master in self.masters] for _ in range(2))
        self.scatter(exp_avg, first)
        self.scatter(exp_avg_sq, second)
        fused = self._zero.optimizer.defaults.get("fused") or self._zero.optimizer.defaults.get("capturable")
        for group, average, square in zip(self._zero.single_partition_of_fp32_groups, first, second, strict=True):
            place = group.device if fused else torch.device("cpu")
            count = torch.tensor(float(step), dtype=torch.float32, device=place)
            self._zero.optimizer.state[group] = {"step": count, "exp_avg": average, "exp_avg_sq": square}


def _take(flat: torch.Tensor, slot: _Slot) -> torch.Tensor:
    return flat[slot.offset : slot.offset + slot.shape.numel()].view(slot.shape)
