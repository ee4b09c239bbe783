"""The order of an epoch: equal to a stable sort by 64 random bits, and made in a thread on time."""

import threading

import numpy as np
import pytest

from fastdeit.plan import order, sampling
from fastdeit.plan.order import EpochOrders, permute_rows
from fastdeit.plan.philox import random_words
from fastdeit.plan.plan import Plan
from fastdeit.plan.spec import PlanSpec


def random_bits(seed: int, epoch: int, rows: np.ndarray) -> np.ndarray:
    words = random_words(seed, epoch, rows, sampling.ORDER)
    return words[0] << np.uint64(32) | words[1]


@pytest.mark.parametrize("count", [1, 2, 3, 1000, order._CHUNK, order._CHUNK + 1, 100_003])
def test_rows_are_sorted_by_their_random_bits(count: int) -> None:
    expected = np.argsort(random_bits(5, 9, np.arange(count)), kind="stable")
    np.testing.assert_array_equal(permute_rows(5, 9, count), expected)


@pytest.mark.parametrize("mask", [0, 0b111, 0b11 << 62, 0b1010 << 60 | 0b101])
def test_rows_whose_bits_are_partly_equal_keep_the_order_of_a_stable_sort(
    mask: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(order, "_random_bits", lambda *key: random_bits(*key) & np.uint64(mask))
    expected = np.argsort(random_bits(0, 1, np.arange(50_000)) & np.uint64(mask), kind="stable")
    np.testing.assert_array_equal(permute_rows(0, 1, 50_000), expected)


def test_an_order_is_made_in_a_thread_before_it_is_asked_for() -> None:
    may_start = threading.Event()
    made_by = []

    def make(epoch: int) -> np.ndarray:
        may_start.wait(10)
        made_by.append(threading.current_thread())
        return np.array([epoch])

    orders = EpochOrders(make)
    orders.prepare(3)
    orders.prepare(3)
    assert not made_by  # nobody waited
    may_start.set()
    assert orders.get(3).tolist() == [3] and orders.get(3).tolist() == [3]
    assert len(made_by) == 1 and made_by[0] is not threading.current_thread()


def test_two_orders_are_kept_at_most() -> None:
    made: list[int] = []

    def make(epoch: int) -> np.ndarray:
        made.append(epoch)
        return np.array([epoch])

    orders = EpochOrders(make)
    for epoch in (0, 1, 0, 1, 2, 1, 2, 0):
        assert orders.get(epoch).tolist() == [epoch]
    assert made == [0, 1, 2, 0]


def test_an_error_in_the_thread_is_raised_where_the_order_is_asked_for() -> None:
    def make(epoch: int) -> np.ndarray:
        raise ValueError(f"epoch {epoch}")

    orders = EpochOrders(make)
    orders.prepare(1)
    with pytest.raises(ValueError, match="epoch 1"):
        orders.get(1)


def test_images_excluded_while_the_next_order_is_made_are_not_in_it() -> None:
    plan = Plan(PlanSpec(), np.full((2**17, 2), 40))
    plan.prepare(1)
    plan.exclude([5, 8])
    assert not np.isin(plan.images(1, np.arange(2**17)), [5, 8]).any()


def test_exclusion_makes_no_new_permutation(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def count(seed: int, epoch: int, images: int) -> np.ndarray:
        made.append(epoch)
        return permute_rows(seed, epoch, images)

    monkeypatch.setattr("fastdeit.plan.order.permute_rows", count)
    plan = Plan(PlanSpec(), np.full((64, 2), 40))
    first = plan.images(0, np.arange(64))
    for row in range(5):
        plan.exclude([row])
        assert not np.isin(plan.images(0, np.arange(64)), range(row + 1)).any()
    assert made == [0]
    others = first >= 5
    np.testing.assert_array_equal(plan.images(0, np.arange(64))[others], first[others])
