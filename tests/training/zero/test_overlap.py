"""The gradient reduced during the backward pass: its pieces, their owners, when it is chosen."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fastdeit.distributed.world import World
from fastdeit.training import build
from fastdeit.training.zero.flat_update import FlatUpdate
from fastdeit.training.zero.overlap import cut, split_by_owner
from fastdeit.training.zero.update import DeepSpeedUpdate
from tests.support.tiny_student import configure, make_model


@pytest.mark.parametrize(
    ("sizes", "count", "pieces"),
    [
        ([4, 4, 4, 4], 2, [[0, 1], [2, 3]]),
        ([4, 4, 4, 4], 1, [[0, 1, 2, 3]]),
        ([100, 1, 1], 3, [[0], [1], [2]]),
        ([1, 1, 100], 2, [[0, 1], [2]]),
        ([5], 8, [[0]]),
    ],
)
def test_pieces_are_consecutive_and_about_equal(
    sizes: list[int], count: int, pieces: list[list[int]]
) -> None:
    assert cut(sizes, count) == pieces


def test_pieces_hold_every_weight_once() -> None:
    sizes = [(7 * number) % 13 + 1 for number in range(50)]
    for count in (1, 2, 5, 8, 50, 60):
        pieces = cut(sizes, count)
        assert [place for piece in pieces for place in piece] == [*range(50)]
        assert len(pieces) <= count and all(pieces)


def test_range_is_split_where_the_owner_changes() -> None:
    assert [*split_by_owner(3, 12, 5)] == [(0, 3, 5), (1, 5, 10), (2, 10, 12)]
    assert [*split_by_owner(5, 10, 5)] == [(1, 5, 10)]
    assert [*split_by_owner(4, 4, 5)] == []


def count_pieces(monkeypatch: pytest.MonkeyPatch, *, name: str, ranks: int, **changes: Any) -> int:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    world = World(0, ranks, 0, min(ranks, 8), torch.device("cuda"))
    config = configure(**changes)
    settings = {"train_micro_batch_size_per_gpu": 128}
    return build.count_pieces(config, world, settings, make_model())


def test_links_are_asked_only_where_they_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def choose(nbytes: float, ranks: int, backward_ms: float, links: Any) -> int:
        asked.append((nbytes, ranks, links.gpus_per_machine))
        assert 0 < backward_ms < 1
        return 5

    monkeypatch.setattr(build, "choose_pieces", choose)
    h100 = "NVIDIA H100 80GB HBM3"
    assert count_pieces(monkeypatch, name=h100, ranks=8, overlap_reduce="auto") == 5
    elements = sum(parameter.numel() for parameter in make_model().parameters())
    assert asked == [(4 * elements, 8, 8)]
    assert count_pieces(monkeypatch, name=h100, ranks=8) == 1
    assert count_pieces(monkeypatch, name=h100, ranks=1, overlap_reduce="auto") == 1
    assert count_pieces(monkeypatch, name="some GPU", ranks=8, overlap_reduce="auto") == 1
    assert len(asked) == 1


def test_heading_says_how_the_gradient_is_reduced() -> None:
    def note(update: Any, choice: str = "auto") -> str:
        return "".join(build.note_reduction(configure(overlap_reduce=choice), update))

    flat = object.__new__(FlatUpdate)
    flat.gradients = SimpleNamespace(overlaps=True)  # type: ignore[assignment]
    assert "in pieces during" in note(flat)
    flat.gradients = SimpleNamespace(overlaps=False)  # type: ignore[assignment]
    assert "after the backward pass" in note(flat)
    assert "DeepSpeed's own step" in note(object.__new__(DeepSpeedUpdate))
    assert note(flat, "off") == ""
