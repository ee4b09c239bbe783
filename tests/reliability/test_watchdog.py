"""The watchdog barks when nothing moves, and only then; a held lock is barked at too."""

import subprocess
import sys
import threading
import time
from pathlib import Path

from fastdeit.reliability.watchdog import Watchdog

ROOT = Path(__file__).parents[2]
LIMITS = {"startup": 1.0, "data": 0.2, "step": 0.2}


class Barks:
    def __init__(self) -> None:
        self.heard: list[tuple[str, int, float]] = []
        self.first = threading.Event()

    def __call__(self, section: str, step: int, limit: float) -> None:
        self.heard.append((section, step, limit))
        self.first.set()


def test_it_barks_once_naming_where_the_process_stands() -> None:
    barks = Barks()
    watchdog = Watchdog(LIMITS, barks, poll_s=0.02)
    watchdog.start()
    for step in range(3):
        watchdog.beat("data", step)
        watchdog.beat("step", step)
    began = time.monotonic()
    assert barks.first.wait(5) and 0.15 < time.monotonic() - began < 2
    time.sleep(0.3)
    assert barks.heard == [("step", 2, 0.2)]
    watchdog.close()


def test_it_is_silent_while_something_moves_and_in_the_first_pass_of_a_section() -> None:
    barks = Barks()
    watchdog = Watchdog(LIMITS, barks, poll_s=0.02)
    watchdog.start()
    time.sleep(0.3)  # the start
    watchdog.beat("data", 7)
    time.sleep(0.3)  # a cache is filled
    watchdog.beat("step", 7)
    time.sleep(0.3)  # kernels are compiled
    for _ in range(5):  # micro-batches of a slow step
        watchdog.beat("step", 8)
        time.sleep(0.1)
    assert not barks.heard
    assert barks.first.wait(5)
    watchdog.close()


def test_a_start_that_hangs_is_seen() -> None:
    barks = Barks()
    watchdog = Watchdog(LIMITS, barks, poll_s=0.02)
    watchdog.start()
    assert barks.first.wait(5) and barks.heard == [("startup", 0, 1.0)]
    watchdog.close()


def test_a_beat_costs_next_to_nothing() -> None:
    watchdog = Watchdog(LIMITS, Barks())
    began = time.perf_counter()
    for step in range(10_000):
        watchdog.beat("step", step)
    assert (time.perf_counter() - began) / 10_000 < 20e-6  # it takes about half a microsecond


def test_a_process_whose_lock_is_held_ends_with_its_stacks() -> None:
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
