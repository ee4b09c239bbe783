"""Our update beside DeepSpeed's, on the same batches: in one process, and on the two ranks of
training/zero/test_update.py, whose rank 0 writes FOLDER/two.json; there ZeRO 2 is replayed."""

import json
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.distributed as dist

from benchmarks.measuring.tape import TapeRecorder
from fastdeit.data.loaders.batch import Batch
from fastdeit.distributed.collectives import all_agree, barrier
from fastdeit.distributed.exits import hard_exit
from fastdeit.distributed.world import World, init_distributed
from fastdeit.training import build
from fastdeit.training.graphs.graph import Graphs
from fastdeit.training.trainer import Trainer
from fastdeit.training.zero.overlap import OverlappedGradients
from tests.support.tiny_student import (
    configure,
    deepspeed_steps,
    make_batch,
    make_trainer,
    part,
)

STEPS = 4
SAMPLES = 12
"""Of a step of all ranks; three micro-batches divide them."""


class Form(NamedTuple):
    precision: str
    zero_stage: int
    clip_grad: float | None
    accumulate: int


FORMS = [
    Form("fp32", 1, None, 3),
    Form("fp32", 1, 0.5, 1),
    Form("fp32", 2, None, 1),
    Form("fp32", 2, 0.5, 3),
    Form("bf16", 2, None, 1),
    Form("bf16", 2, None, 3),
    Form("bf16", 2, 0.5, 3),
]


OVERLAPPED = [FORMS[0], FORMS[4], FORMS[6]]
"""Forms whose gradient is reduced during the backward pass, too."""


class Difference(NamedTuple):
    """Largest differences of our update from DeepSpeed's, on any rank; equal: to the bit."""

    statistics: float
    weights: float
    moments: float
    equal: bool


def move(batch: Batch, device: torch.device) -> Batch:
    """Return the batch with its tensors on the device."""
    on_device = {
        name: value.to(device) for name, value in vars(batch).items() if torch.is_tensor(value)
    }
    return Batch(**vars(batch) | on_device)


def train(trainer: Trainer, micro: int, world: World) -> list[list[float]]:
    """Take `STEPS` steps; return the statistics of each."""
    rows = []
    for step in range(STEPS):
        batch = move(make_batch(step, world.rank, world.size), world.device)
        starts = range(0, SAMPLES // world.size, micro)
        rows.append(trainer.train_step(part(batch, start, micro) for start in starts).tolist())
        assert trainer.applied
    return rows


def compare_updates(form: Form, world: World) -> Difference:
    """Train with both updates; return how far they are apart."""
    micro = SAMPLES // world.size // form.accumulate
    fields = {name: getattr(form, name) for name in ("precision", "zero_stage", "clip_grad")}
    config = configure(**fields, batch_size=SAMPLES, micro_batch=micro)
    ours = make_trainer(config, world)
    if world.size > 1 and form.zero_stage == 2:
        ours.graphs = Graphs(TapeRecorder())
    with deepspeed_steps():
        theirs = make_trainer(config, world)
    rows = [torch.tensor(train(trainer, micro, world)) for trainer in (ours, theirs)]
    (mine, state), (other, other_state) = ours.state.gather(), theirs.state.gather()
    sets = {
        stem: max(largest(value - other[stem][name]) for name, value in named.items())
        for stem, named in mine.items()
    }
    moments = max(sets["exp_avg"], sets["exp_avg_sq"])
    statistics = largest((rows[0] - rows[1]) / rows[1].abs().clamp(min=1e-30))
    assert ours.graphs is None or not ours.graphs.failures
    same = state == other_state and not statistics and not any(sets.values())
    return Difference(statistics, max(sets["model"], sets["ema"]), moments, all_agree(same))


class Overlap(NamedTuple):
    """What a reduction during the backward pass changes; equal: nothing, to the bit, on any rank;
    early: reductions that began before the end of the first backward pass that sends them."""

    equal: bool
    early: int
    all: int


def overlap(form: Form, world: World) -> Overlap:
    """Train with the gradient reduced after the backward pass and during it."""
    micro = SAMPLES // world.size // form.accumulate
    fields = {name: getattr(form, name) for name in ("precision", "zero_stage", "clip_grad")}
    config = configure(**fields, batch_size=SAMPLES, micro_batch=micro)
    after = make_trainer(config, world)
    with mock.patch.object(build, "count_pieces", lambda *_: 3):
        during = make_trainer(config, world)
    order: list[str] = []
    gradients: Any = during.update.gradients  # type: ignore[attr-defined]
    assert isinstance(gradients, OverlappedGradients)
    reduce, differentiate = dist.reduce, gradients._differentiate

    def noted_reduce(*given: Any, **named: Any) -> Any:
        order.append("reduce")
        return reduce(*given, **named)

    def noted_differentiate(*given: Any) -> Any:
        order.append("begin")
        found = differentiate(*given)
        order.append("end")
        return found

    with (
        mock.patch.object(gradients, "_differentiate", noted_differentiate),
        mock.patch.object(dist, "reduce", noted_reduce),
    ):
        same = train(during, micro, world) == train(after, micro, world)
    mine, other = during.state.gather()[0], after.state.gather()[0]
    for stem, named in mine.items():
        same &= all(torch.equal(value, other[stem][name]) for name, value in named.items())
    ends = [number for number, event in enumerate(order) if event == "end"]
    first = 0 if form.zero_stage == 2 else form.accumulate - 1
    early = order[: ends[first]].count("reduce")
    return Overlap(all_agree(same), early, order.count("reduce"))


def largest(difference: torch.Tensor) -> float:
    return difference.abs().max().item()


def main(folder: Path) -> None:
    world = init_distributed(60)
    found: dict[str, Any] = {
        str(number): compare_updates(form, world)._asdict() for number, form in enumerate(FORMS)
    }
    found["overlap"] = [overlap(form, world)._asdict() for form in OVERLAPPED]
    if world.rank == 0:
        (folder / "two.json").write_text(json.dumps(found))
    barrier()
    hard_exit(0)  # gloo's threads may abort a process that ends by itself
