"""Watchdog: it expires only without progress, also while Python's lock is held."""

import faulthandler
import subprocess
import sys
import threading
import time

import pytest

from fastdeit.reliability.watchdog import Watchdog
from tests.support.launching import ROOT

LIMITS = {"startup": 1.0, "data": 0.2, "step": 0.2}


class Expirations:
    def __init__(self) -> None:
        self.calls: list[tuple[str, int, float]] = []
        self.first = threading.Event()

    def __call__(self, section: str, step: int, limit: float) -> None:
        self.calls.append((section, step, limit))
        self.first.set()


def test_missing_progress_is_reported_once_with_section_and_step() -> None:
    expirations = Expirations()
    watchdog = Watchdog(LIMITS, expirations, poll_s=0.02)
    watchdog.start()
    for step in range(3):
        watchdog.beat("data", step)
        watchdog.beat("step", step)
    began = time.monotonic()
    assert expirations.first.wait(5) and 0.15 < time.monotonic() - began < 2
    time.sleep(0.3)
    assert expirations.calls == [("step", 2, 0.2)]
    watchdog.close()


def test_first_step_of_a_section_and_slow_progress_are_allowed() -> None:
    expirations = Expirations()
    watchdog = Watchdog(LIMITS, expirations, poll_s=0.02)
    watchdog.start()
    time.sleep(0.3)  # start-up
    watchdog.beat("data", 7)
    time.sleep(0.3)  # a cache is filled
    watchdog.beat("step", 7)
    time.sleep(0.3)  # kernels are compiled
    for _ in range(5):  # micro-batches of a slow step
        watchdog.beat("step", 8)
        time.sleep(0.1)
    assert not expirations.calls
    assert expirations.first.wait(5)
    watchdog.close()


def test_start_up_that_hangs_is_reported() -> None:
    expirations = Expirations()
    watchdog = Watchdog(LIMITS, expirations, poll_s=0.02)
    watchdog.start()
    assert expirations.first.wait(5) and expirations.calls == [("startup", 0, 1.0)]
    watchdog.close()


def test_beat_takes_microseconds() -> None:
    watchdog = Watchdog(LIMITS, Expirations())
    began = time.perf_counter()
    for step in range(10_000):
        watchdog.beat("step", step)
    assert (time.perf_counter() - began) / 10_000 < 20e-6  # it takes about half a microsecond


def test_lock_may_be_held_for_little_more_than_the_shortest_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    timeouts: list[float] = []

    def set_timer(seconds: float, **_: object) -> None:
        timeouts.append(seconds)

    monkeypatch.setattr(faulthandler, "dump_traceback_later", set_timer)
    limits = {"startup": 7200.0, "step": 600.0, "data": 900.0}
    watchdog = Watchdog(limits, Expirations(), poll_s=0.01)
    watchdog.start()
    time.sleep(0.1)
    watchdog.close()
    assert set(timeouts) == {610.0}


def test_process_whose_lock_is_held_ends_with_its_stacks() -> None:
    code = """
import ctypes
from fastdeit.reliability import watchdog
watchdog._GRACE_S = 0.5
def hold_the_lock():
    ctypes.PyDLL("libc.so.6").sleep(60)
dog = watchdog.Watchdog({"startup": 0.5, "step": 0.5}, print, poll_s=0.1)
dog.start()
import time
time.sleep(0.3)
hold_the_lock()
"""
    began = time.monotonic()
    end = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=30
    )
    assert end.returncode == 1 and time.monotonic() - began < 20
    assert "Timeout (" in end.stderr and "in hold_the_lock" in end.stderr
