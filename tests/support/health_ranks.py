"""The work of the two ranks of test_health.py, at every ZeRO stage.

Rank 0 writes FOLDER/ranks.json.
"""

import dataclasses
import gc
import json
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from fastdeit.distributed.collectives import barrier
from fastdeit.distributed.exits import hard_exit
from fastdeit.distributed.world import World, init_distributed
from fastdeit.reliability.health import Health
from fastdeit.reliability.replica_check import compare_weights
from fastdeit.storage.run_folder import RunFolder
from fastdeit.training.losses import Criterion
from fastdeit.training.trainer import Trainer
from tests.support.tiny_student import (
    BATCH,
    STEPS_PER_EPOCH,
    configure,
    make_batch,
    make_trainer,
    part,
)

NAN_AT = 2


class InfiniteLoss:
    """A criterion with an infinite loss and the original gradient."""

    def __init__(self, criterion: Criterion) -> None:
        self._criterion = criterion

    def __call__(self, *arguments: Any) -> Any:
        parts = self._criterion(*arguments)
        return parts._replace(loss=parts.loss + torch.inf)


def train_step(trainer: Trainer, world: World, accumulate: int = 2) -> torch.Tensor:
    batch = make_batch(trainer.step, world.rank, world.size)
    size = len(batch.labels) // accumulate
    return trainer.train_step(part(batch, at, size) for at in range(0, len(batch.labels), size))


def contents(trainer: Trainer) -> dict[str, torch.Tensor]:
    tensors, state = trainer.state.gather()
    named = {
        f"{stem} {name}": value.clone()
        for stem, named in tensors.items()
        for name, value in named.items()
    }
    return named | {"adam": torch.tensor(state["adam_step"])}


def equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, right[name]) for name, value in left.items())


def flip(module: torch.nn.Module, bit: int = 0) -> None:
    """Flip a bit of the first element of the first weight, by default the lowest."""
    next(module.parameters()).data.view(-1).view(torch.uint8)[bit // 8] ^= 1 << bit % 8


def check_health(fields: dict[str, Any], folder: Path, world: World) -> dict[str, Any]:
    """Plant an infinite loss with a finite gradient on the last rank, then a flipped bit there.

    Return what the health check and the comparison of weights report.
    """
    trainer = make_trainer(configure(**fields, micro_batch=BATCH // world.size // 2), world)
    health = Health(RunFolder(folder), STEPS_PER_EPOCH, BATCH, lambda line: None)
    new = compare_weights(trainer.state.model)
    norms = [train_step(trainer, world)[-1].item() for _ in range(NAN_AT)]
    before = contents(trainer)
    criterion = trainer.criterion
    if world.rank == world.size - 1:
        trainer.criterion = InfiniteLoss(criterion)  # type: ignore[assignment]
    train_step(trainer, world)
    trainer.criterion = criterion
    skipped = not trainer.applied
    health.note_bad(NAN_AT, trainer.micro_steps, str)
    found = {
        "norms": norms,
        "skipped": skipped,
        "untouched": equal(before, contents(trainer)),
        "line": dataclasses.asdict(health.bad[0]),
    }
    found |= {
        "next": train_step(trainer, world).tolist(),
        "equal": [new, compare_weights(trainer.state.model)],
    }
    if world.rank == world.size - 1:
        flip(trainer.state.model)
    return found | {"flipped": compare_weights(trainer.state.model)}


FORMS: dict[str, dict[str, Any]] = {
    **{f"fp32 {stage}": {"zero_stage": stage} for stage in (1, 2, 3)},
    **{f"bf16 {stage}": {"zero_stage": stage, "precision": "bf16"} for stage in (2, 3)},
}


def main(folder: Path) -> None:
    world = init_distributed(60)
    gc.freeze()  # each engine at ZeRO 3 collects garbage, which would search all of torch
    found = {name: check_health(fields, folder, world) for name, fields in FORMS.items()}
    ranks: list[Any] = [None] * world.size
    dist.all_gather_object(ranks, found)
    if world.rank == 0:
        (folder / "ranks.json").write_text(json.dumps(ranks))
    barrier()
    hard_exit(0)  # gloo's threads may abort a process that ends by itself
