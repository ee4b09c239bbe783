"""Recorded steps: equal bit for bit to those that are launched anew, whatever changes in between.

Recordings are tapes (tests/support/tape.py), which repeat the same operators on the same memory.

python -m pytest tests/training/graphs/test_update.py
"""

import dataclasses
from typing import Any

import pytest
import torch

from fastdeit.distributed.world import World, init_distributed
from fastdeit.training.graphs.update import GraphUpdate
from fastdeit.training.trainer import Trainer
from tests.support.tape import TapeRecorder
from tests.support.tiny_student import BATCH, configure, make_batch, make_trainer, part

STEPS = 12


@pytest.fixture(scope="module")
def world() -> World:
    return init_distributed()


def with_graphs(trainer: Trainer, micro_steps: int) -> TapeRecorder:
    """Let a trainer's update record itself; return what has recorded it."""
    update: Any = trainer.update
    recorder = TapeRecorder()
    graph = GraphUpdate(
        recorder,
        update._model,
        trainer.state.partitions,
        update._gradients,
        update._clip_grad,
    )
    trainer.update = graph
    blank = part(make_batch(0), 0, BATCH // micro_steps)
    blank = dataclasses.replace(blank, unmixed=torch.zeros_like(blank.images))
    loss = trainer._loss_of(blank, trainer.criterion)
    assert graph.prepare(loss, micro_steps) == ""
    return recorder


def contents(trainer: Trainer) -> dict[str, torch.Tensor]:
    tensors, values = trainer.state.gather()
    return {f"{kind} {name}": v for kind, named in tensors.items() for name, v in named.items()}


def run(trainer: Trainer, micro_steps: int) -> list[list[float]]:
    """Return the statistics of some steps; the loss of one is not finite."""
    found = []
    size = BATCH // micro_steps
    for step in range(STEPS):
        batch = make_batch(step)
        if step == 5:
            batch = dataclasses.replace(batch, lam=torch.full_like(batch.lam, torch.nan))
        parts = [part(batch, start, size) for start in range(0, BATCH, size)]
        found.append(trainer.train_step(parts).tolist())
        assert trainer.applied == (step != 5)
    return found


@pytest.mark.parametrize(
    ("precision", "micro_steps", "clip_grad"),
    [("fp32", 1, None), ("fp32", 4, 0.5), ("bf16", 2, 1.0)],
)
def test_recorded_steps_equal_launched_ones(
    precision: str, micro_steps: int, clip_grad: float | None, world: World
) -> None:
    micro = BATCH // micro_steps
    changes = {"precision": precision, "micro_batch": micro, "clip_grad": clip_grad}
    config = configure(zero_stage=1 if precision == "fp32" else 2, **changes)
    launched = make_trainer(config, world)
    recorded = make_trainer(config, world)
    before = contents(recorded)
    recorder = with_graphs(recorded, micro_steps)
    assert len(recorder.tapes) == min(micro_steps, 2) + 2
    after = contents(recorded)
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    expected = run(launched, micro_steps)
    found = run(recorded, micro_steps)
    assert [[repr(value) for value in row] for row in found] == [
        [repr(value) for value in row] for row in expected
    ]
    mine = contents(recorded)
    assert all(torch.equal(value, mine[name]) for name, value in contents(launched).items())
