"""DeepSpeed's flat partitions by parameter name: the only file that uses DeepSpeed's private names.

Every parameter group is one flat fp32 buffer (the master weights) of equal partitions, one per
rank; Adam's moments and our EMA have the same layout. At ZeRO 1 and 2 a group is one flat parameter
(zero/flat.py), the model's parameters are slices of it, and a partition may end within a slice; at
ZeRO 3 every parameter is itself cut into equal pieces, the last one padded, and a rank's partition
holds its piece of each. Here they become plain dicts of full tensors by parameter name, and back,
so that a checkpoint does not depend on stage or world size. Written against
deepspeed/runtime/zero/{stage_1_and_2,stage3}.py of 0.19.8; `open_partitions` fails at once if a
later version lacks what it needs.

DeepSpeed's public functions (`safe_get_full_fp32_param`, `safe_get_full_optimizer_state` and their
setters) are not used. They communicate once for each parameter, have no EMA, and do not refresh the
bf16 copies; at ZeRO 1 and 2 they find only the moments of the first group. The tests compare with
them.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.functional import pad

from fastdeit.distributed.world import import_deepspeed
from fastdeit.training.zero.flat import ContiguousSlot


@dataclass(frozen=True)
class ShardedSlot:
    """Place of a parameter that is cut into equal pieces, one in each rank's partition (ZeRO 3)."""

    name: str
    shape: torch.Size
    offset: int
    size: int

    def locate(self, rank: int, elements: int) -> slice:
        """Return the place of the parameter's elements in the partition of a rank, without padding;
        an empty slice if it has none."""
        count = min(self.size, max(0, self.shape.numel() - rank * self.size))
        return slice(self.offset, self.offset + count)

    def read(self, parts: torch.Tensor) -> torch.Tensor:
        """Return a copy of the parameter from all ranks' partitions (ranks, elements)."""
        return self._pieces(parts).flatten()[: self.shape.numel()].view(self.shape).clone()

    def write(self, parts: torch.Tensor, value: torch.Tensor) -> None:
        """Write the parameter's `value` into all ranks' partitions (ranks, elements); the padding
        becomes zero."""
        pieces = self._pieces(parts)
        pieces.copy_(pad(value.flatten(), (0, pieces.numel() - value.numel())).view(pieces.shape))

    def _pieces(self, parts: torch.Tensor) -> torch.Tensor:
        return parts[:, self.offset : self.offset + self.size]


class Partitions(ABC):
    """This rank's partition of the master weights and of the moments of Adam or LAMB, a flat fp32
    tensor for each group."""

    needed: tuple[str, ...]
    """Attributes of DeepSpeed's ZeRO optimizer that are used here."""
    flats: str
    """The attribute that holds the master weights."""

    def __init__(self, engine: Any) -> None:
        self._zero = engine.optimizer
        self._device = engine.device
        names = (*self.needed, self.flats, "optimizer")
        missing = ", ".join(name for name in names if not hasattr(self._zero, name))
        if missing:
            raise RuntimeError(
                f"this DeepSpeed is not supported: its ZeRO optimizer has no {missing}"
            )
        self._model = engine.module.model
        self._slots = self._layout(engine.module)

    @abstractmethod
    def _layout(self, module: Any) -> Sequence[Sequence[ContiguousSlot | ShardedSlot]]:
        """Return the places of the parameters of each group; module: a `LossModule`."""

    @abstractmethod
    def load_frozen(self, named: Mapping[str, torch.Tensor]) -> None:
        """Set, from full tensors by name, the model's weights that no group has; a collective."""

    @abstractmethod
    def _update_model(self) -> None:
        """Set the model's own weights from the masters; a collective."""

    @abstractmethod
    def after_skip(self) -> None:
        """Make the model usable again after a step that DeepSpeed skipped; a collective."""

    @property
    def _groups(self) -> list[torch.Tensor]:
        return list(getattr(self._zero, self.flats))

    @property
    def masters(self) -> list[torch.Tensor]:
        """Return this rank's partition of the fp32 master weights, a flat tensor for each group;
        the optimizer changes them in place."""
        return [group.data for group in self._groups]

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """Return torch's optimizer, whose parameters are this rank's partitions."""
        optimizer: torch.optim.Optimizer = self._zero.optimizer
        return optimizer

    def locate(self) -> dict[torch.Tensor, list[slice]]:
        """Return the places of the parameters in each flat tensor of this rank's optimizer: a slice
        for each parameter of the group, in the same order on every rank."""
        rank = dist.get_rank()
        return {
            group: [slot.locate(rank, group.numel()) for slot in slots]
            for group, slots in zip(self._groups, self._slots, strict=True)
        }

    def gather(self, flats: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return full fp32 CPU tensors by parameter name, from flat tensors with the layout of
        `masters`; a collective."""
        named: dict[str, torch.Tensor] = {}
        for slots, flat in zip(self._slots, flats, strict=True):
            parts = torch.empty(
                dist.get_world_size(), flat.numel(), dtype=flat.dtype, device=self._device
            )
            dist.all_gather_into_tensor(parts.view(-1), flat.to(self._device).contiguous())
            parts = parts.cpu()
            named |= {slot.name: slot.read(parts) for slot in slots}
        return named

    def scatter(self, named: Mapping[str, torch.Tensor], flats: Sequence[torch.Tensor]) -> None:
        """Write this rank's partition of full tensors by parameter name into flat tensors with the
        layout of `masters`."""
        for slots, flat in zip(self._slots, flats, strict=True):
            parts = torch.zeros(dist.get_world_size(), flat.numel(), dtype=flat.dtype)
            for slot in slots:
                slot.write(parts, named[slot.name])
            flat.copy_(parts[dist.get_rank()])

    def load(self, named: Mapping[str, torch.Tensor]) -> None:
        """Set the master weights from full fp32 tensors by name, and from them the model's own
        weights; a collective."""
        self.scatter(named, self.masters)
        self._update_model()

    def moments(self) -> tuple[int, list[torch.Tensor], list[torch.Tensor]]:
        """Return the optimizer's step and this rank's two moments, each as one flat fp32 tensor per
        group; zeros before the first step."""
        self.create_moments()
        states = [self.optimizer.state[group] for group in self._groups]
        first = [state["exp_avg"] for state in states]
        second = [state["exp_avg_sq"] for state in states]
        return int(states[0]["step"]), first, second

    def count_applied(self) -> int:
        """Return the number of steps that have changed the weights; waits for the device."""
        return self.moments()[0]

    def create_moments(self) -> None:
        """Create the moments as they are before the first step, unless they exist."""
        for group in self._groups:
            state = self.optimizer.state[group]
            if not state:
                state["step"] = torch.zeros((), device=group.device)
                state["exp_avg"] = torch.zeros_like(group.data)
                state["exp_avg_sq"] = torch.zeros_like(group.data)

    def load_moments(
        self, step: int, exp_avg: Mapping[str, torch.Tensor], exp_avg_sq: Mapping[str, torch.Tensor]
    ) -> None:
        """Set the optimizer's step and moments, in place, from full tensors by parameter name."""
        _, first, second = self.moments()
        self.scatter(exp_avg, first)
        self.scatter(exp_avg_sq, second)
        for group in self._groups:
            self.optimizer.state[group]["step"].fill_(step)


class OptimizerPartitions(Partitions):
    """Partitions at ZeRO 1 and 2: the model has whole weights, slices of one flat parameter for
    each group."""

    needed = ("update_lp_params", "bit16_groups_flat", "parallel_partitioned_bit16_groups")
    flats = "single_partition_of_fp32_groups"

    @property
    def weights(self) -> list[torch.Tensor]:
        """Return the model's weights in the training precision, a flat tensor for each group,
        padded to equal partitions."""
        return list(self._zero.bit16_groups_flat)

    @property
    def weight_parts(self) -> list[torch.Tensor]:
        """Return views of this rank's partitions of `weights`."""
        rank = dist.get_rank()
        return [parts[rank] for parts in self._zero.parallel_partitioned_bit16_groups]

    def _layout(self, module: Any) -> list[list[ContiguousSlot]]:
        return module.slots

    def load_frozen(self, named: Mapping[str, torch.Tensor]) -> None:
        for name, value in named.items():
            self._model.get_parameter(name).data.copy_(value)

    def _update_model(self) -> None:
        self._zero.update_lp_params()

    def after_skip(self) -> None:
        pass


class ModelPartitions(Partitions):
    """Partitions at ZeRO 3: the model's weights are cut too, except for small ones, which are whole
    on every rank ("persistent")."""

    needed = (
        "fp16_groups",
        "fp16_partitioned_groups_flat",
        "_reassign_or_swap_out_partitioned_parameters",
        "checkpoint_event_prologue",
        "checkpoint_event_epilogue",
    )
    flats = "fp32_partitioned_groups_flat"

    def _layout(self, module: Any) -> list[list[ShardedSlot]]:
        names = {parameter: name for name, parameter in module.model.named_parameters()}
        layout = []
        for group in self._zero.fp16_groups:
            slots = []
            offset = 0
            for parameter in group:
                size = parameter.partition_numel()
                slots.append(ShardedSlot(names[parameter], parameter.ds_shape, offset, size))
                offset += size
            layout.append(slots)
        return layout

    def load_frozen(self, named: Mapping[str, torch.Tensor]) -> None:
        gather = import_deepspeed().zero.GatheredParameters
        for name, value in named.items():
            weight = self._model.get_parameter(name)
            # one at a time, as all of them may not fit at once; rank 0 sends its value to the
            # others
            with gather([weight], modifier_rank=0):
                weight.data.copy_(value)

    def _update_model(self) -> None:
        # release the weights that are whole at the moment, set the pieces from the masters, then
        # gather the persistent weights again
        self._zero.checkpoint_event_prologue()
        for group in range(len(self._groups)):
            self._zero._reassign_or_swap_out_partitioned_parameters(group)
        self._zero.checkpoint_event_epilogue()

    def after_skip(self) -> None:
        # after a skipped step the persistent weights are cut, and the next forward pass would fail
        # (0.19.8)
        self._zero.checkpoint_event_epilogue()


def open_partitions(engine: Any) -> Partitions:
    """Return the partitions of an engine at ZeRO 1, 2 or 3. Raises RuntimeError if this DeepSpeed
    lacks what they need."""
    if engine.zero_optimization_stage() == 3:
        return ModelPartitions(engine)
    return OptimizerPartitions(engine)
