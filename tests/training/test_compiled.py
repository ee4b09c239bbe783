"""Training with --compile on: the same losses, names and draws, compiled once.

The fast tests trace with torch's backend "eager" in place of the compiler.
"""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from fastdeit.distributed.world import World, init_distributed
from fastdeit.models.execution import compilation
from fastdeit.models.execution.compilation import check_compiler, run_uncompiled
from fastdeit.training.evaluation import student_heads
from fastdeit.training.trainer import Trainer
from tests.support import timm_students
from tests.support.compiling import CountingBackend
from tests.support.tiny_student import BATCH, configure, make_trainer, run_steps

Make = Callable[..., Trainer]


def make_ours(world: World, **changes: Any) -> Trainer:
    return make_trainer(configure(**changes), world)


def make_timms(world: World, **changes: Any) -> Trainer:
    return timm_students.build("one head", configure(**changes), world)


@pytest.fixture(scope="module")
def world() -> World:
    return init_distributed()


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> CountingBackend:
    torch._dynamo.reset()
    found = CountingBackend()
    monkeypatch.setattr(compilation, "BACKEND", found)
    return found


def names(trainer: Trainer) -> list[str]:
    tensors, _ = trainer.state.gather()
    return [name for group in tensors.values() for name in group]


@pytest.mark.parametrize(("make", "stage"), [(make_ours, 1), (make_timms, 2)])
def test_steps_are_those_without_a_compiler_and_compile_once(
    make: Make, stage: int, world: World, graphs: CountingBackend
) -> None:
    """Weights are views that DeepSpeed updates; evaluations between steps compile nothing."""
    plain = make(world, zero_stage=stage)
    expected = run_steps(plain, 4, BATCH // 2)
    trainer = make(world, zero_stage=stage, compile="on")
    losses = run_steps(trainer, 2, BATCH // 2)
    seen = (graphs.compiled, graphs.calls)
    assert graphs.compiled >= 1
    with run_uncompiled(), torch.no_grad():
        student_heads(trainer.state.module())(torch.zeros(3, 3, 32, 32))
    assert seen == (graphs.compiled, graphs.calls)
    losses += run_steps(trainer, 2, BATCH // 2)
    assert graphs.compiled == seen[0] and graphs.calls == 2 * seen[1]
    assert losses == expected
    assert names(trainer) == names(plain)
    assert not any("_orig_mod" in name for name in names(trainer))
    theirs = plain.state.weights()
    assert all(torch.equal(value, theirs[name]) for name, value in trainer.state.weights().items())


def test_a_compiled_run_resumes_without_a_compiler(world: World, graphs: CountingBackend) -> None:
    first = make_ours(world, compile="on")
    run_steps(first, 2)
    saved = copy.deepcopy(first.state.gather())
    expected = run_steps(first, 2)
    calls = graphs.calls
    second = make_ours(world)
    second.state.load(*saved)
    assert run_steps(second, 2) == expected and graphs.calls == calls


def test_without_a_compiler_the_setting_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(graph: object, inputs: object) -> None:
        raise RuntimeError("no C++ compiler\nat all")

    torch._dynamo.reset()
    monkeypatch.setattr(compilation, "BACKEND", fail)
    with pytest.raises(ValueError, match=r"^--compile must be off, .*no C\+\+ compiler") as error:
        check_compiler(torch.device("cpu"))
    assert "\n" not in str(error.value)


def test_zero_3_is_refused() -> None:
    with pytest.raises(ValueError, match=r"--compile must be off with --zero-stage 3 \(got 'on'\)"):
        configure(zero_stage=3, compile="on")


@pytest.mark.slow
@pytest.mark.parametrize("make", [make_ours, make_timms])
def test_compiled_steps_are_near_those_without(make: Make, world: World) -> None:
    check_compiler(torch.device("cpu"))
    expected = run_steps(make(world), 4)
    trainer = make(world, compile="on")
    assert run_steps(trainer, 4) == pytest.approx(expected, rel=1e-4)


def test_a_compiled_network_is_the_module_itself(graphs: CountingBackend) -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x) + 1

    network = Network()
    compilation.compile_network(network)
    assert list(network.state_dict()) == ["layer.weight", "layer.bias"]
    network(torch.ones(1, 3))
    copy.deepcopy(network)(torch.ones(1, 3))
    assert graphs.calls == 1  # a copy is not compiled
