"""The roll call of the ranks, each a thread with its own connection to one store."""

import datetime
import logging
import socket
import threading
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
import torch.distributed as dist

from fastdeit.distributed import roll_call
from fastdeit.distributed.roll_call import call_roll, list_ranges
from tests.support.launching import free_port

LIMIT = datetime.timedelta(seconds=20)


class CountedStore:
    """A store that counts what is asked of it."""

    def __init__(self, port: int, serves: bool, asked: Counter[str]) -> None:
        self._store = dist.TCPStore(
            *("127.0.0.1", port), is_master=serves, timeout=LIMIT, wait_for_workers=False
        )
        self._asked = asked

    def __getattr__(self, name: str) -> Any:
        self._asked[name] += 1
        return getattr(self._store, name)


def call(sizes: Mapping[int, int], twice: int | None = None) -> tuple[dict[int, str], Counter[str]]:
    """Call the roll; return the errors by rank and the number of requests of each kind.

    sizes: the number of ranks that each one was started with; twice: the rank that is here twice.
    """
    port = free_port()
    errors: dict[int, str] = {}
    asked: Counter[str] = Counter()
    ranks = [*sizes, *([] if twice is None else [twice])]
    stores = [CountedStore(port, number == 0, asked) for number in range(len(ranks))]

    def report(rank: int, store: Any) -> None:
        try:
            call_roll(store, rank, sizes[rank])
        except ValueError as error:
            errors[rank] = str(error)

    threads = [
        threading.Thread(target=report, args=place) for place in zip(ranks, stores, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors, asked


def test_messages_grow_with_the_ranks_not_with_their_square() -> None:
    for size in (4, 16):
        errors, asked = call(dict.fromkeys(range(size), size))
        assert not errors
        # the size and the verdict are set once, and rank 0 waits once
        assert asked == {"compare_set": size + 1, "add": size, "get": 2 * size, "set": 1, "wait": 1}


def test_rank_that_is_here_twice_is_refused_on_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 3's machine was started as that of rank 2."""
    monkeypatch.setattr(socket, "gethostname", lambda: f"host-{threading.get_ident()}")
    errors, _ = call(dict.fromkeys(range(3), 4), twice=2)
    assert set(errors) == set(range(3))
    for message in errors.values():
        start = "--node_rank must be another one on each machine (got rank 2 on host"
        assert message.startswith(start)


def test_rank_of_another_world_is_refused_on_all() -> None:
    errors, _ = call({0: 3, 1: 3, 2: 4})
    assert set(errors) == {0, 1, 2}
    (message,) = set(errors.values())
    assert message.startswith("--hostfile must be the same on all machines (got 3 ranks on that")
    assert f"4 on {socket.gethostname()})" in message


def test_missing_ranks_are_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(roll_call, "_FIRST_NOTE_S", 0.1)
    port = free_port()
    store = CountedStore(port, True, Counter())
    with caplog.at_level(logging.WARNING):
        present = threading.Thread(target=call_roll, args=(store, 0, 5))
        present.start()
        while not caplog.records:
            present.join(0.05)
        stores = [CountedStore(port, False, Counter()) for _ in range(4)]
        others = [
            threading.Thread(target=call_roll, args=(other, rank, 5))
            for rank, other in enumerate(stores, 1)
        ]
        for thread in others:
            thread.start()
        for thread in (present, *others):
            thread.join()
    assert caplog.messages[0] == "waiting for 4 of 5 ranks: 1 to 4"


def test_ranges_are_short() -> None:
    assert list_ranges([1, 3, 4, 5, 9, 10]) == "1, 3 to 5, 9 to 10"
    assert list_ranges([]) == ""
