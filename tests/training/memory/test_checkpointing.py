"""Activation checkpointing: the results of a run, bit for bit, and models that cannot."""

import pytest
import torch
from torch import nn

from fastdeit.config.parse import SettingError
from fastdeit.distributed.world import World, init_distributed
from fastdeit.training.memory.checkpointing import turn_on_checkpointing
from fastdeit.training.trainer import Trainer
from tests.support.timm_students import build
from tests.support.tiny_student import configure, make_trainer, run_steps
from tests.training.test_timm_students import MODELS, train


@pytest.fixture(scope="module")
def world() -> World:
    return init_distributed()


def assert_same(trainers: list[Trainer], losses: list[list[float]]) -> None:
    assert losses[0] == losses[1]
    one, other = (trainer.state.weights() for trainer in trainers)
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_student_trains_to_the_same_bits(precision: str, world: World) -> None:
    """At ZeRO 3 a variant of test_partitions.py does, with sharded weights on two ranks."""
    trainers = [
        make_trainer(configure(precision=precision, grad_checkpointing=on), world)
        for on in (False, True)
    ]
    assert [trainer.state.model.grad_checkpointing for trainer in trainers] == [False, True]
    assert_same(trainers, [run_steps(trainer, 3) for trainer in trainers])


@pytest.mark.parametrize("kind", MODELS)
def test_a_timm_model_trains_to_the_same_bits(kind: str, world: World) -> None:
    """Also what it draws, and the statistics of its batch norms, which a second pass would count
    twice."""
    trainers = [build(kind, configure(grad_checkpointing=on), world) for on in (False, True)]
    assert_same(trainers, [train(trainer, kind, 3) for trainer in trainers])


class Refusing(nn.Module):
    """A model that refuses as timm's do."""

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        assert not enable, "gradient checkpointing not supported"


@pytest.mark.parametrize("model", [nn.Linear(2, 2), Refusing()], ids=["without", "refusing"])
def test_a_model_that_cannot_is_named(model: nn.Module) -> None:
    with pytest.raises(SettingError, match=r"--grad-checkpointing must be off with --model some"):
        turn_on_checkpointing(model, "some")
