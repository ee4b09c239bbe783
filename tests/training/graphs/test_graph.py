"""Recorded functions on a CPU; operators of benchmarks/measuring/tape.py stand for a CUDA graph."""

from collections.abc import Callable

import pytest
import torch

from benchmarks.measuring.tape import TapeRecorder
from fastdeit.training.graphs.graph import MOST, Graphs
from fastdeit.training.graphs.undo import Undo


def scale(values: torch.Tensor, factor: torch.Tensor | None) -> torch.Tensor:
    return values * 2 if factor is None else values * factor


def test_a_call_returns_what_the_function_would() -> None:
    recorder = TapeRecorder()
    graphs = Graphs(recorder)
    found = []
    for step in range(3):
        values = torch.full((4,), float(step))
        result = graphs.run("scale", scale, values, torch.tensor(3.0))
        assert result is not None
        found.append(result)
        doubled = graphs.run("scale", scale, values, None)
        assert doubled is not None and torch.equal(doubled, values * 2)
    assert torch.stack(found)[:, 0].tolist() == [0, 3, 6]
    assert recorder.recorded == [1, 1] and not graphs.failures


def test_each_signature_is_recorded_and_their_number_is_bounded() -> None:
    recorder = TapeRecorder()
    graphs = Graphs(recorder)
    inputs = [torch.rand(2, size) for size in range(1, 8)]
    inputs += [inputs[2].double(), torch.rand(3, 2).T]
    for values in [*inputs, *inputs]:
        doubled = graphs.run("scale", scale, values, None)
        assert doubled is not None and torch.equal(doubled, values * 2)
    assert len(recorder.recorded) == MOST


def test_a_number_of_the_host_stays_as_it_was_recorded() -> None:
    graphs = Graphs(TapeRecorder())
    found = [graphs.run("add", torch.zeros(1).add, torch.tensor(number)) for number in (1.0, 2.0)]
    assert [value.item() for value in found if value is not None] == [1, 2]
    found = [
        graphs.run("add a constant", lambda zero, number=number: zero + number, torch.zeros(1))
        for number in (1.0, 2.0)
    ]
    assert [value.item() for value in found if value is not None] == [1, 1]


def fail(values: torch.Tensor) -> torch.Tensor:
    values.add_(1)
    raise ValueError("a cause\n  of two lines")


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda values: values * values.sum().item(), "_local_scalar_dense"),
        (lambda values: values[values > 0], "aten.index.Tensor reads a value"),
        (lambda values: values + torch.rand(3), "draws a random number"),
        (fail, "a cause of two lines"),
    ],
    ids=["item", "mask", "random", "error"],
)
def test_what_cannot_be_recorded_runs_as_it_is_with_one_line_of_reason(
    function: Callable[[torch.Tensor], torch.Tensor], reason: str
) -> None:
    graphs = Graphs(TapeRecorder())
    random = torch.get_rng_state()
    graphs.record("part", function, torch.ones(3))
    assert reason in graphs.failures["part"] and "\n" not in graphs.failures["part"]
    assert torch.equal(torch.get_rng_state(), random)
    if function is not fail:
        assert graphs.run("part", function, torch.ones(3)) is not None
    assert graphs.run("scale", scale, torch.ones(3), None) is not None
    assert list(graphs.failures) == ["part"]
    (note,) = graphs.take_notes()
    assert note.startswith("part: no CUDA graph: ") and reason in note and not graphs.take_notes()


def test_recording_runs_nothing() -> None:
    total = torch.zeros(3)
    graphs = Graphs(TapeRecorder())
    graphs.record("add", total.add_, torch.ones(3))
    assert total.tolist() == [0, 0, 0]
    for _ in range(2):
        graphs.run("add", total.add_, torch.full((3,), 2.0))
    assert total.tolist() == [4, 4, 4]


def test_undo_restores_all_that_was_there_before() -> None:
    whole = torch.arange(6.0)
    weight = whole[2:4].requires_grad_()
    before = whole.detach().clone()
    moments = [torch.ones(2), torch.ones(3)]

    def change() -> None:
        made = torch.zeros(2).add_(weight.detach())
        whole[:3].mul_(5)
        torch._foreach_add_(moments, 1.0)
        torch.add(made, 1, out=weight)
        whole[4:].copy_(made)
        assert whole[2] != before[2] and moments[0][0] == 2
        raise ValueError

    with pytest.raises(ValueError), torch.no_grad(), Undo():
        change()
    assert torch.equal(whole.detach(), before)
    assert all(torch.equal(moment, torch.ones_like(moment)) for moment in moments)


def test_undo_sees_what_a_backward_pass_changes() -> None:
    leaf = torch.ones(2, requires_grad=True)
    leaf.grad = torch.zeros(2)
    with Undo():
        (leaf * 3).sum().backward()
        assert leaf.grad.tolist() == [3, 3]
    assert leaf.grad.tolist() == [0, 0]
