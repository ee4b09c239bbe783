"""The model of the links: its limits, and where pieces pay.

python -m pytest tests/training/zero/test_links.py, 1 s
"""

import pytest

from fastdeit.training.zero.links import Links, choose_pieces, exposed_ms

SMALL = 4 * 22.4e6
"""Bytes of DeiT-S' gradient in fp32."""


def test_one_gpu_sends_nothing() -> None:
    assert Links().ring_ms(SMALL, 1) == 0
    assert all(choose_pieces(SMALL, 1, ms, Links()) == 1 for ms in (0.3, 7.0, 20.1))


def test_a_ring_sends_all_but_one_share_and_waits_once_a_turn() -> None:
    links = Links(inside_gbps=100.0, inside_us=10.0)
    assert links.ring_ms(8e8, 8) == pytest.approx(7.0 + 0.07)


def test_several_machines_have_the_latency_of_the_network() -> None:
    links = Links()
    assert links.ring_ms(0, 1024) == pytest.approx(1023 * 0.008)
    assert Links(between_gbps=2.0).ring_ms(SMALL, 16) > 10 * links.ring_ms(SMALL, 8)


def test_one_piece_hides_nothing() -> None:
    assert exposed_ms(SMALL, 8, 1, 7.0, Links()) == pytest.approx(Links().ring_ms(SMALL, 8))


def test_a_long_backward_hides_all_but_the_last_piece() -> None:
    last = Links().ring_ms(SMALL / 4, 8)
    assert exposed_ms(SMALL, 8, 4, 1000.0, Links()) == pytest.approx(last)


def test_without_a_backward_pieces_only_add_latency() -> None:
    one = exposed_ms(SMALL, 8, 1, 0.0, Links())
    assert exposed_ms(SMALL, 8, 4, 0.0, Links()) > one
    assert choose_pieces(SMALL, 8, 0.0, Links()) == 1


def test_pieces_pay_on_eight_gpus_and_not_where_latency_decides() -> None:
    assert choose_pieces(SMALL, 8, 7.0, Links()) > 1
    assert choose_pieces(SMALL, 1024, 7.0, Links()) < choose_pieces(SMALL, 8, 7.0, Links())
