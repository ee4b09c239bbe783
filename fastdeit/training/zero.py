"""DeepSpeed's flat partitions under parameter names: the only file that touches DeepSpeed's
privates.

Every parameter group is one flat fp32 buffer (the master weights) of equal parts, one a rank;
Adam's moments and our EMA have the same layout. At ZeRO 1 and 2 a group is one flat parameter
(training/flat.py), of which the model's parameters are slices, and the cuts fall anywhere; at ZeRO
3 every parameter is itself cut into equal pieces, the last one padded, and a rank's part is its
piece of each. Here they become plain dicts of full tensors by parameter name, and back, so that a
checkpoint knows nothing of stage or world size. Written against
deepspeed/runtime/zero/{stage_1_and_2,stage3}.py of 0.19.8; `open_partitions` fails at once when a
later version lacks what it needs.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.functional import pad

from fastdeit.training.flat import Slice


@dataclass(frozen=True)
class Pieces:
    """A parameter of which each rank's part holds a piece of equal size, the last one padded (ZeRO
    3)."""

    name: str
    shape: torch.Size
    offset: int
    size: int

    def read(self, parts: torch.Tensor) -> torch.Tensor:
        """As `Slice.read`."""
        return self._pieces(parts).flatten()[: self.shape.numel()].view(self.shape).clone()

    def write(self, parts: torch.Tensor, value: torch.Tensor) -> None:
        """As `Slice.write`; the padding becomes zero."""
        pieces = self._pieces(parts)
        pieces.copy_(pad(value.flatten(), (0, pieces.numel() - value.numel())).view(pieces.shape))

    def _pieces(self, parts: torch.Tensor) -> torch.Tensor:
        return parts[:, self.offset : self.offset + self.size]


class Partitions(ABC):
    """This rank's partitions of a DeepSpeed engine's master weights and Adam moments, one flat fp32
    tensor a group."""

    needed: tuple[str, ...]
    """Attributes of DeepSpeed's ZeRO optimizer that are used here."""
    flats: str
    """Which of them holds the master weights."""

    def __init__(self, engine: Any) -> None:
        self._zero, self._device = engine.optimizer, engine.device
        missing = [
            name
            for name in (*self.needed, self.flats, "optimizer")
            if not hasattr(self._zero, name)
        ]
        if missing:
            raise RuntimeError(
                f"this DeepSpeed is not supported: its ZeRO optimizer has no {', '.join(missing)}"
            )
        self._slots = self._layout(engine.module)

    @abstractmethod
    def _layout(self, module: Any) -> Sequence[Sequence[Slice | Pieces]]:
        """Where the parameters of each group lie; module: a `LossModule` of training/flat.py."""

    @abstractmethod
    def _update_model(self) -> None:
        """Sets the model's own weights from the masters; a collective."""

    @abstractmethod
    def after_skip(self) -> None:
        """Puts the model in order after a step that DeepSpeed has skipped; a collective."""

    @property
    def _groups(self) -> list[torch.Tensor]:
        return list(getattr(self._zero, self.flats))

    @property
    def masters(self) -> list[torch.Tensor]:
        """fp32 master weights, this rank's part, one flat tensor a group; changed in place by the
        optimizer."""
        return [group.data for group in self._groups]

    def gather(self, flats: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Full fp32 CPU tensors by parameter name from flat tensors laid out as `masters`; a
        collective."""
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
        """Writes this rank's part of full tensors by parameter name into flat tensors laid out as
        `masters`."""
        for slots, flat in zip(self._slots, flats, strict=True):
            parts = torch.zeros(dist.get_world_size(), flat.numel(), dtype=flat.dtype)
            for slot in slots:
                slot.write(parts, named[slot.name])
            flat.copy_(parts[dist.get_rank()])

    def install(self, named: Mapping[str, torch.Tensor]) -> None:
        """Sets the master weights, and the model's own copies from them; a collective."""
        self.scatter(named, self.masters)
        self._update_model()

    def moments(self) -> tuple[int, list[torch.Tensor], list[torch.Tensor]]:
        """Adam's step and this rank's first and second moments; zeros before the first step."""
        states = [self._zero.optimizer.state[group] for group in self._groups]
        if not all(states):
            zeros = [[torch.zeros_like(master) for master in self.masters] for _ in range(2)]
            return 0, zeros[0], zeros[1]
        return (
            int(states[0]["step"]),
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
        )

    def install_moments(
        self, step: int, exp_avg: Mapping[str, torch.Tensor], exp_avg_sq: Mapping[str, torch.Tensor]
    ) -> None:
        """Sets Adam's step and moments from full tensors by parameter name; at step 0 Adam begins
        anew."""
        self._zero.optimizer.state.clear()
        if step == 0:
            return
        first, second = ([torch.zeros_like(master) for master in self.masters] for _ in range(2))
        self.scatter(exp_avg, first)
        self.scatter(exp_avg_sq, second)
        fused = self._zero.optimizer.defaults.get("fused") or self._zero.optimizer.defaults.get(
            "capturable"
        )
        for group, average, square in zip(self._groups, first, second, strict=True):
            place = group.device if fused else torch.device("cpu")
            count = torch.tensor(float(step), dtype=torch.float32, device=place)
            self._zero.optimizer.state[group] = {
                "step": count,
                "exp_avg": average,
                "exp_avg_sq": square,
            }


class _OptimizerPartitions(Partitions):
    """ZeRO 1 and 2: the model keeps whole weights, as slices of one flat parameter a group."""

    needed = ("update_lp_params",)
    flats = "single_partition_of_fp32_groups"

    def _layout(self, module: Any) -> list[list[Slice]]:
        return module.slices

    def _update_model(self) -> None:
        self._zero.update_lp_params()

    def after_skip(self) -> None:
        pass


class _ModelPartitions(Partitions):
    """ZeRO 3: the model's weights too lie in pieces, but for small ones, which every rank keeps
    whole ("persistent")."""

    needed = (
        *(
            "fp16_groups",
            "fp16_partitioned_groups_flat",
            "_reassign_or_swap_out_partitioned_parameters",
        ),
        *("checkpoint_event_prologue", "checkpoint_event_epilogue"),
    )
    flats = "fp32_partitioned_groups_flat"

    def _layout(self, module: Any) -> list[list[Pieces]]:
        names = {parameter: name for name, parameter in module.model.named_parameters()}
        layout = []
        for group in self._zero.fp16_groups:
            slots, offset = [], 0
            for parameter in group:
                size = parameter.partition_numel()
                slots.append(Pieces(names[parameter], parameter.ds_shape, offset, size))
                offset += size
            layout.append(slots)
        return layout

    def _update_model(self) -> None:
        self._zero.checkpoint_event_prologue()  # lets go of weights that are whole at the moment
        for group in range(len(self._groups)):
            self._zero._reassign_or_swap_out_partitioned_parameters(group)
        self._zero.checkpoint_event_epilogue()  # gathers the persistent ones again

    def after_skip(self) -> None:
        # a skipped step leaves the persistent ones in pieces, and the next forward pass stumbles
        # over them (0.19.8)
        self._zero.checkpoint_event_epilogue()


def open_partitions(engine: Any) -> Partitions:
    """The partitions of an engine at ZeRO 1, 2 or 3. Raises RuntimeError if this DeepSpeed lacks
    what they need."""
    return (_ModelPartitions if engine.zero_optimization_stage() == 3 else _OptimizerPartitions)(
        engine
    )
