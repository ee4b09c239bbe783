"""The decision whether a fast path may be switched on."""

import pytest
import torch

from benchmarks.bench_paths import Trained, is_equal, list_shown, vary
from benchmarks.measuring.harness import Row
from benchmarks.measuring.trainers import make_batch

PATH = "--cuda-graph auto"


@pytest.mark.parametrize(
    ("found", "shown"),
    [
        ([(True, 0.9), (True, 1.2)], [PATH]),
        ([(True, 1.2), (False, 1.5)], []),
        ([(True, 0.9), (True, 1.0)], []),
        ([], []),
    ],
)
def test_a_path_is_shown_if_it_is_equal_everywhere_and_faster_somewhere(
    found: list[tuple[bool, float]], shown: list[str]
) -> None:
    rows: list[Row] = [
        {"path": PATH, "shape": "", "equal": equal, "faster_by": ratio} for equal, ratio in found
    ]
    assert list_shown(rows) == shown


def test_one_bit_of_a_loss_or_weight_is_a_difference() -> None:
    one = Trained(torch.ones(2, 4), {"head": torch.ones(3)}, 1.0)
    other = one._replace(weights={"head": torch.ones(3).nextafter(torch.zeros(3))})
    assert is_equal(one, one._replace(ms=2.0)) and not is_equal(one, other)
    assert not is_equal(one, one._replace(statistics=torch.full((2, 4), torch.nan)))


def test_batches_differ_from_step_to_step_and_are_the_same_again() -> None:
    batch = make_batch(4, torch.device("cpu"), 32)
    first, again, second = vary(batch, 1), vary(batch, 1), vary(batch, 2)
    for name in ("labels", "lam", "drop_path_mask"):
        assert torch.equal(getattr(first, name), getattr(again, name))
        assert not torch.equal(getattr(first, name), getattr(second, name))
