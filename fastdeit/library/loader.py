"""The training loader of `import fastdeit`: an iterable for any loop, resumable at any batch."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch

from fastdeit.config.parse import require_value
from fastdeit.config.schema import Config
from fastdeit.data.index import Index
from fastdeit.data.loaders.batch import Batch
from fastdeit.data.loaders.train import TrainLoader
from fastdeit.data.quarantine import Quarantine
from fastdeit.distributed.world import World
from fastdeit.kernels.distill import swap_pairs
from fastdeit.kernels.mix import mix
from fastdeit.library.errors import argument_errors
from fastdeit.plan.plan import Plan
from fastdeit.teacher_cache.reader import CachedTeacher

_STATE_VERSION = 1


@dataclass(frozen=True)
class LoaderParts:
    """The objects behind a `Loader`."""

    config: Config
    world: World
    index: Index
    plan: Plan
    quarantine: Quarantine
    teacher_cache: CachedTeacher | None
    batches: TrainLoader


class Loader:
    """Training batches of one rank, augmented, in the plan's order; made by `create_loader`.

    A pass is an epoch. The first pass is epoch 0, and each further one the next epoch, also
    after a pass that was not finished; `set_epoch` chooses the epoch of the next pass. Attributes:
    dataset (`Index`: its length is the number of images), classes (names in the order of the
    labels), plan, teacher_cache (None without `cache`), device, config, mixup_enabled (False: from
    the next batch on nothing is mixed, as timm's --mixup-off-epoch asks for).
    """

    def __init__(self, parts: LoaderParts, raw: bool, img_dtype: torch.dtype) -> None:
        self._parts = parts
        self._raw = raw
        self._img_dtype = img_dtype
        self.config = parts.config
        self.dataset = parts.index
        self.classes = parts.index.classes
        self.plan = parts.plan
        self.teacher_cache = parts.teacher_cache
        self.world = parts.world
        self.device = parts.world.device
        self.mixup_enabled = True
        self._position = (0, 0)
        self._starts_there = True
        """True if the next pass begins at the position; False: at the epoch after it."""

    def __len__(self) -> int:
        """Return the batches of an epoch."""
        return self._parts.batches.steps_per_epoch

    def __iter__(self) -> Iterator[Any]:
        if not self._starts_there:
            self._position = (self._position[0] + 1, 0)
        self._starts_there = False
        return self._pass(*self._position)

    def _pass(self, epoch: int, first: int) -> Iterator[Any]:
        with argument_errors():
            for number, batch in enumerate(self._parts.batches.epoch(epoch, first), first + 1):
                self._position = (epoch, number)
                yield self._finish(batch)
        self._set_position(epoch + 1, 0)

    def _set_position(self, epoch: int, batch: int) -> None:
        self._position = (epoch, batch)
        self._starts_there = True

    def _finish(self, batch: Batch) -> Batch | tuple[torch.Tensor, torch.Tensor]:
        if not self.mixup_enabled:
            batch = dataclasses.replace(
                batch, lam=torch.ones_like(batch.lam), box=torch.zeros_like(batch.box)
            )
        if self._raw:
            return batch
        targets = soften(batch.labels, batch.lam, len(self.classes), self.config.mix.smoothing)
        return mix(batch.unmixed, batch.lam, batch.box, self._img_dtype), targets

    def set_epoch(self, epoch: int) -> None:
        """Make the next pass `epoch`, from its first batch on; after `load_state_dict`, from the
        loaded batch on if it is of that epoch. Raises ValueError for a number that is no epoch."""
        is_epoch = isinstance(epoch, Integral) and epoch >= 0
        require_value(is_epoch, "epoch", epoch, "an integer of at least 0")
        epoch = int(epoch)  # a state is JSON
        if not (self._starts_there and epoch == self._position[0]):
            self._set_position(epoch, 0)

    @property
    def sampler(self) -> "Loader":
        """Return this loader: timm and Lightning call `loader.sampler.set_epoch`."""
        return self

    batch_sampler = sampler

    def state_dict(self) -> dict[str, Any]:
        """Return the position of the loader, after the batch that it gave last, as JSON values.

        It is equal on all ranks, and fits any number of them, unless one found a damaged image.
        """
        epoch, batch = self._position
        return {
            "version": _STATE_VERSION,
            "epoch": epoch,
            "batch": batch,
            "excluded": self._parts.quarantine.rows.tolist(),
            **self._identity(),
        }

    def _identity(self) -> dict[str, Any]:
        return {
            "batch_size": self.config.optim.batch_size,
            "plan": self.plan.fingerprint(),
            "images": self.dataset.fingerprint(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the batch at which `state_dict` was called: the next pass gives the rest
        of its epoch.

        Raises ValueError for a state of another batch size, plan or data set.
        """
        require_value(isinstance(state, dict), "state", state, "what state_dict returned")
        for name, mine in {"version": _STATE_VERSION, **self._identity()}.items():
            _require_state(state, name, state.get(name) == mine, repr(mine))
        _require_state(state, "epoch", _is_count(state.get("epoch")), "0 or more")
        at_most = _is_count(state.get("batch")) and state["batch"] <= len(self)
        _require_state(state, "batch", at_most, f"0 to {len(self)}")
        rows = state.get("excluded")
        last = len(self.dataset) - 1
        are_rows = isinstance(rows, list) and all(_is_count(row) and row <= last for row in rows)
        _require_state(state, "excluded", are_rows, f"rows of the index, 0 to {last}")
        known = set(self._parts.quarantine.rows.tolist())
        gone = dict.fromkeys(state["excluded"], "excluded before the state was saved")
        if not known.issuperset(gone):
            self._parts.batches.forget_ahead()
            self._parts.quarantine.exclude(gone)
        self._set_position(state["epoch"], state["batch"])

    def teacher_output(self, batch: Batch) -> torch.Tensor | None:
        """Return what the teacher cache holds for a raw batch: class ids (B,) int64 for hard
        distillation, else logits (B, K) fp32; None if nothing is recorded."""
        if self.teacher_cache is None or batch.teacher_record is None:
            return None
        distill = self.config.distill
        is_hard = distill.distillation_type == "hard"
        return self.teacher_cache.decoder(is_hard, distill.distillation_tau)(batch.teacher_record)

    def close(self) -> None:
        """Stop the threads that read ahead; batches that were yielded stay valid."""
        self._parts.batches.close()


def _require_state(state: dict[str, Any], name: str, ok: bool, allowed: str) -> None:
    require_value(ok, f"state[{name!r}]", state.get(name), allowed)


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def soften(
    labels: torch.Tensor, lam: torch.Tensor, num_classes: int, smoothing: float
) -> torch.Tensor:
    """Return the targets of mixed pairs, (B, K) fp32: lam · s(label) + (1 - lam) · s(partner's
    label), where s smooths a label as timm's `Mixup` does; lam: (B,) fp32."""
    off = smoothing / num_classes
    smooth = torch.full((len(labels), num_classes), off, device=labels.device)
    smooth.scatter_(1, labels[:, None], 1 - smoothing + off)
    share = lam[:, None]
    return share * smooth + (1 - share) * swap_pairs(smooth)
