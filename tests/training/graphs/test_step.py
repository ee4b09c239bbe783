"""Steps whose parts are replayed: equal bit for bit to those that are launched, whatever changes
between them. On a CPU tapes (benchmarks/measuring/tape.py) stand for CUDA graphs."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.measuring.counting import StepCounter
from benchmarks.measuring.tape import TapeRecorder
from benchmarks.measuring.trainers import make_config, micro_batches
from benchmarks.measuring.trainers import make_trainer as make_deit
from fastdeit.distributed.world import World, init_distributed
from fastdeit.models.execution.form import Execution
from fastdeit.models.teachers.files import LoadedTeacher
from fastdeit.models.teachers.teacher import Teacher
from fastdeit.models.teachers.view import Preprocessing, View
from fastdeit.training.graphs.cuda import CudaRecorder
from fastdeit.training.graphs.graph import Graphs
from fastdeit.training.trainer import Trainer
from tests.support.tiny_student import (
    BATCH,
    CLASSES,
    SIZE,
    configure,
    make_batch,
    make_trainer,
    part,
)

BAD = 5
"""The step whose loss is not finite."""


@pytest.fixture(scope="module")
def world() -> World:
    return init_distributed()


def with_graphs(trainer: Trainer, micro: int = BATCH) -> TapeRecorder:
    """Let a trainer record its steps from zeros; return what has recorded them."""
    recorder = TapeRecorder()
    trainer.graphs = Graphs(recorder)
    batch = part(make_batch(0), 0, micro)
    trainer.record_graphs(dataclasses.replace(batch, unmixed=torch.zeros_like(batch.images)))
    assert not trainer.graphs.failures
    return recorder


def make_network(world: World) -> Teacher:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
    network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(4, CLASSES)).eval()
    own, student = (Preprocessing((mean,) * 3, (0.5,) * 3, SIZE) for mean in (0.4, 0.5))
    loaded = LoadedTeacher(network, "own", View(own, {}), Path("own"), "a hash")
    form: dict[str, Any] = {
        "dtype": torch.float32,
        "student": student,
        "execution": Execution(batch=BATCH // 2),
    }
    return Teacher(loaded, num_classes=CLASSES, device=world.device, **form)


def test_a_teacher_that_is_a_network_has_a_graph_of_its_own(world: World) -> None:
    """Of both parts of its batch; a function that is the teacher runs as it is."""
    plain = make_trainer(configure(), world, make_network(world))
    trainer = make_trainer(configure(), world, make_network(world))
    recorder = with_graphs(trainer)
    assert len(recorder.recorded) == 3
    assert train(trainer, 4) == train(plain, 4)
    assert_same(trainer, plain)
    assert len(recorder.recorded) == 3
    assert len(with_graphs(make_trainer(configure(), world)).recorded) == 2


def contents(trainer: Trainer) -> dict[str, Any]:
    tensors, values = trainer.state.gather()
    named: dict[str, Any] = {}
    for stem, of_stem in tensors.items():
        named |= {f"{stem} {name}": tensor for name, tensor in of_stem.items()}
    return named | values


def assert_same(mine: Trainer, theirs: Trainer) -> None:
    found, expected = contents(mine), contents(theirs)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        same = torch.equal(found[name], value) if torch.is_tensor(value) else found[name] == value
        assert same, name


def train(trainer: Trainer, steps: int, micro: int = BATCH) -> list[str]:
    """Return the statistics of the next steps as text, since NaN does not equal itself."""
    rows = []
    for _ in range(steps):
        step = trainer.step
        batch = make_batch(step)
        if step == BAD:
            batch.lam[3] = torch.nan
        parts = [part(batch, start, micro) for start in range(0, BATCH, micro)]
        rows.append(str(trainer.train_step(parts).tolist()))
        assert trainer.applied == (step != BAD)
        if step % 4 == 3:  # as an evaluation does
            trainer.state.module()
            trainer.state.model.eval()
    return rows


@pytest.mark.parametrize(
    ("fields", "micro", "steps"),
    [
        ({"model_ema_warmup": True}, BATCH, 50),
        ({"precision": "bf16", "zero_stage": 2, "clip_grad": 0.5}, 4, 8),
        ({"opt": "lamb", "grad_checkpointing": True}, 8, 8),
        ({"trainable": "attention", "model_ema": False, "layer_decay": 0.5}, BATCH, 8),
    ],
    ids=["long", "bf16", "lamb", "frozen"],
)
def test_replayed_steps_equal_launched_ones(
    fields: dict[str, Any], micro: int, steps: int, world: World
) -> None:
    config = configure(**fields, micro_batch=micro)
    launched, replayed = (make_trainer(config, world) for _ in range(2))
    recorder = with_graphs(replayed, micro)
    assert_same(replayed, launched)
    assert train(replayed, steps, micro) == train(launched, steps, micro)
    assert_same(replayed, launched)
    assert len(recorder.recorded) == min(BATCH // micro, 2) + 1


def test_recording_changes_neither_state_nor_random_numbers(world: World) -> None:
    trainer, other = (make_trainer(configure(clip_grad=0.5), world) for _ in range(2))
    train(trainer, 3)
    train(other, 3)
    random = torch.get_rng_state()
    with_graphs(trainer)
    assert torch.equal(torch.get_rng_state(), random)
    assert_same(trainer, other)
    assert train(trainer, 3) == train(other, 3)


def test_state_that_is_restored_into_a_recorded_trainer_trains_the_same(world: World) -> None:
    launched, replayed = (make_trainer(configure(), world) for _ in range(2))
    with_graphs(replayed)
    train(launched, 3)
    saved = launched.state.gather()
    train(launched, 2)
    train(replayed, 7)
    replayed.state.load(*saved)
    train(replayed, 2)
    assert_same(replayed, launched)


def test_a_learning_rate_of_the_host_would_be_noticed(world: World) -> None:
    launched, replayed = (make_trainer(configure(), world) for _ in range(2))
    update: Any = replayed.update

    def set_rates(rates: list[float]) -> None:
        for group, rate in zip(update._optimizer.param_groups, rates, strict=True):
            group["lr"] = rate

    update.set_rates = set_rates
    with_graphs(replayed)
    assert train(replayed, 3) != train(launched, 3)


def test_a_criterion_of_one_step_is_not_replayed(world: World) -> None:
    launched, replayed = (make_trainer(configure(), world) for _ in range(2))
    with_graphs(replayed)

    def double(*arguments: Any) -> Any:
        parts = launched.criterion(*arguments)
        return parts._replace(loss=parts.loss * 2)

    losses = [
        trainer.train_step([make_batch(0)], criterion=double)[0].item()
        for trainer in (launched, replayed)
    ]
    assert losses[0] == losses[1] > launched.train_step([make_batch(0)])[0].item() * 1.5
    replayed.train_step([make_batch(0)])
    assert_same(replayed, launched)


def test_the_host_calls_few_operators_beside_the_graphs(world: World) -> None:
    """12 blocks, a recorded teacher: a replay is one call, whatever it contains."""
    config = make_config("toy", 2)
    trainer = make_deit(config, world)
    batches = micro_batches(config, torch.device("cpu"))
    recorder = TapeRecorder()
    trainer.graphs = Graphs(recorder)
    trainer.record_graphs(batches[0])
    assert len(recorder.recorded) == 2 and sum(recorder.recorded) > 500
    with StepCounter() as counter:
        trainer.train_step(batches)
    assert len(recorder.replayed) == 2 and counter.launches <= 26, counter.operators
    # on a CPU, mixing looks at its boxes
    assert {place.module for place in counter.reads} <= {"fastdeit.kernels.mix_kernels.cpu"}
    assert not counter.synchronisations and counter.copies == 0


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("fields", "micro"), [({}, BATCH), ({"precision": "fp32", "clip_grad": 0.5}, 4)]
)
def test_cuda_graphs_equal_launched_steps(fields: dict[str, Any], micro: int, world: World) -> None:
    config = configure(**fields, micro_batch=micro)
    launched, replayed = (make_trainer(config, world) for _ in range(2))
    replayed.graphs = Graphs(CudaRecorder(world.device))
    for trainer in (launched, replayed):
        for _ in range(50):
            batch = move(make_batch(trainer.step), world.device)
            trainer.train_step([part(batch, start, micro) for start in range(0, BATCH, micro)])
    assert not replayed.graphs.failures
    assert_same(replayed, launched)


@pytest.mark.gpu
def test_a_wait_within_a_cuda_graph_is_one_line_and_the_function_runs(world: World) -> None:
    graphs = Graphs(CudaRecorder(world.device))
    ones = torch.ones(3, device=world.device)
    found = graphs.run("wait", lambda values: values * values.sum().item(), ones)
    assert found is not None and found.tolist() == [3, 3, 3]
    assert "\n" not in graphs.failures["wait"]
    doubled = graphs.run("double", lambda values: values * 2, ones)
    assert doubled is not None and doubled.tolist() == [2, 2, 2] and len(graphs.failures) == 1


def move(batch: Any, device: torch.device) -> Any:
    """Return a batch with its tensors on a device."""
    tensors = {name: value for name, value in vars(batch).items() if torch.is_tensor(value)}
    moved = {name: value.to(device) for name, value in tensors.items()}
    return dataclasses.replace(batch, **moved)
