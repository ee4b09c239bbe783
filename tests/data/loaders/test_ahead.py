"""Batches made in a thread: their order, their errors, and the end of the thread."""

import gc
import os
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable

import pytest

from fastdeit.data.loaders.ahead import ReadAhead
from tests.support.launching import ROOT

NAME = "fastdeit-loader"


def loader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith(NAME)]


class Maker:
    """Maker of batches: a batch is its number; attributes note what was made, and where."""

    def __init__(self, broken: tuple[int, ...] = ()) -> None:
        self.made: list[int] = []
        self.threads: set[threading.Thread] = set()
        self._broken = broken

    def make(self, number: int) -> int:
        self.made.append(number)
        self.threads.add(threading.current_thread())
        if number in self._broken:
            raise ValueError(f"batch {number} is broken")
        return number


def ahead(make: Callable[[int], int], enabled: bool = True) -> ReadAhead[int]:
    return ReadAhead(make, "cpu", enabled)


@pytest.mark.parametrize("enabled", [True, False])
def test_batches_come_by_number(enabled: bool) -> None:
    maker = Maker()
    batches = ahead(maker.make, enabled)
    assert [batches.get(number, number + 1) for number in range(5)] == list(range(5))
    batches.close()
    assert maker.made[:5] == list(range(5))
    assert (threading.main_thread() in maker.threads) != enabled


def test_one_batch_is_made_while_the_caller_uses_another() -> None:
    made: list[int] = []
    made_second = threading.Event()

    def make(number: int) -> int:
        made.append(number)
        if number == 1:
            made_second.set()
        return number

    batches = ahead(make)
    assert batches.get(0, 1) == 0
    assert made_second.wait(10)
    batches.close()
    assert made == [0, 1]


def test_nothing_is_made_ahead_of_the_last_batch() -> None:
    maker = Maker()
    batches = ahead(maker.make)
    batches.get(0, None)
    batches.close()
    assert maker.made == [0]


def test_after_a_jump_the_batch_made_ahead_is_dropped() -> None:
    maker = Maker()
    batches = ahead(maker.make)
    assert [batches.get(number, number + 1) for number in (0, 7, 8, 3)] == [0, 7, 8, 3]
    batches.close()
    assert [number for number in maker.made if number in (0, 3, 7, 8)] == [0, 7, 8, 3]


def test_an_error_is_raised_at_its_batch_with_its_traceback() -> None:
    maker = Maker(broken=(1,))
    batches = ahead(maker.make)
    assert batches.get(0, 1) == 0
    with pytest.raises(ValueError, match="batch 1 is broken") as caught:
        batches.get(1, 2)
    assert "in make\n" in "".join(traceback.format_exception(caught.value))
    assert batches.get(2, 3) == 2
    batches.close()


def test_an_error_of_a_batch_that_is_not_used_is_dropped() -> None:
    batches = ahead(Maker(broken=(1,)).make)
    assert batches.get(0, 1) == 0
    assert batches.get(4, None) == 4
    batches.close()


def test_an_interrupted_wait_loses_no_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    maker = Maker()
    batches = ahead(maker.make)
    batches.get(0, 1)
    task = batches._task
    assert task is not None

    def interrupt() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(task.future, "result", interrupt)
        with pytest.raises(KeyboardInterrupt):
            batches.get(1, 2)
    assert [batches.get(1, 2), batches.get(2, None)] == [1, 2]
    batches.close()


def test_close_waits_for_the_batch_that_is_being_made() -> None:
    begun = threading.Event()
    ended: list[float] = []

    def make(number: int) -> int:
        if number:
            begun.set()
            time.sleep(0.05)
            ended.append(time.monotonic())
        return number

    before = loader_threads()
    batches = ahead(make)
    batches.get(0, 1)
    assert begun.wait(10)
    (thread,) = [thread for thread in loader_threads() if thread not in before]
    batches.close()
    assert ended and ended[0] <= time.monotonic() and not thread.is_alive()


def test_a_loader_that_nobody_uses_ends_its_thread() -> None:
    batches = ahead(Maker().make)
    before = loader_threads()
    batches.get(0, 1)
    (thread,) = set(loader_threads()) - set(before)
    del batches
    gc.collect()
    thread.join(10)
    assert not thread.is_alive()


def test_a_forked_process_gets_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = ahead(Maker().make)
    batches.get(0, 1)
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: -1)
        with pytest.raises(RuntimeError, match="do not survive a fork"):
            batches.get(1, 2)
    batches.close()


@pytest.mark.slow
def test_a_process_that_fails_ends_without_closing_its_loader() -> None:
    script = """
import time
from fastdeit.data.loaders.ahead import ReadAhead
batches = ReadAhead(lambda number: time.sleep(0.2 * number), "cpu", True)
batches.get(0, 1)
raise SystemExit(7)
"""
    ended = subprocess.run([sys.executable, "-c", script], cwd=ROOT, timeout=60)
    assert ended.returncode == 7
