"""Trackers: each in a thread of its own, none of which ends, blocks or slows a run unnoticed."""

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from fastdeit.tracking import trackers as module
from fastdeit.tracking.callbacks import Callback, RunEnd, RunStart
from fastdeit.tracking.trackers import Trackers

START = RunStart(Path("run"), "deit", {}, {}, 0, 10, 0)
END = RunEnd("finished", 10)


class Recorder(Callback):
    """A callback that notes the names of its calls, and runs `act` in the one named `at`."""

    def __init__(self, at: str = "", act: Callable[[], object] = lambda: None) -> None:
        self.calls: list[str] = []
        self._at = at
        self._act = act

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("on_"):
            return super().__getattribute__(name)
        return lambda *arguments: self._record(name)

    def _record(self, name: str) -> None:
        self.calls.append(name)
        if name == self._at:
            self._act()


def deliver(*callbacks: Callback, limit_s: float = 30.0, lines: int = 2) -> list[str]:
    """Deliver a short run; return the notes."""
    notes: list[str] = []
    trackers = Trackers()
    for number, callback in enumerate(callbacks):
        trackers.add(f"tracker {number}", callback, notes.append)
    trackers.start(START)
    for step in range(lines):
        trackers.send("on_log", {"step": step})
    trackers.end(END, limit_s)
    return notes


def fail() -> None:
    raise RuntimeError("no\nroom \udce4")


def leave() -> None:
    raise SystemExit(3)


ALL = ["on_start", "on_log", "on_log", "on_end"]


def test_events_come_in_their_order() -> None:
    callback = Recorder()
    assert deliver(callback) == [] and callback.calls == ALL


@pytest.mark.parametrize(
    ("act", "reason"),
    [(fail, "RuntimeError: no room \\xe4"), (leave, "SystemExit: 3")],
    ids=["exception", "exit"],
)
def test_one_that_raises_is_off_and_the_others_are_not(
    act: Callable[[], None], reason: str
) -> None:
    faulty = Recorder("on_log", act)
    sound = Recorder()
    assert deliver(faulty, sound) == [f"tracker 0 is off from here on: {reason}"]
    assert faulty.calls == ALL[:2] and sound.calls == ALL


def test_the_watchdog_hears_of_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BEAT_S", 0.02)
    trackers = Trackers()
    trackers.add("tracker", Recorder("on_end", lambda: time.sleep(0.2)), print)
    trackers.start(START)
    beats: list[float] = []
    trackers.end(END, beat=lambda: beats.append(time.monotonic()))
    assert len(beats) > 2


@pytest.mark.parametrize("place", ["on_start", "on_log", "on_end"])
def test_one_that_hangs_is_left_behind(place: str) -> None:
    released = threading.Event()
    sound = Recorder()
    began = time.monotonic()
    notes = deliver(Recorder(place, lambda: released.wait(60)), sound, limit_s=0.1)
    released.set()
    assert time.monotonic() - began < 10
    assert notes == ["tracker 0 has not ended within 0.1 s; the run does not wait"]
    assert sound.calls == ALL


def test_one_that_falls_behind_misses_events_and_costs_no_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 5)
    released = threading.Event()
    slow = Recorder("on_start", lambda: released.wait(60))
    notes = deliver(slow, limit_s=0.1, lines=50)
    released.set()
    assert notes[0] == "tracker 0 is 5 events behind, and misses what comes now"
    assert len(notes) == 2


def test_one_that_computes_much_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MEASURED_S", 0.05)

    def compute() -> None:
        end = time.thread_time() + 0.1
        while time.thread_time() < end:
            pass

    notes = deliver(Recorder("on_log", compute), Recorder("on_log", lambda: time.sleep(0.1)))
    assert len(notes) == 1 and notes[0].startswith("tracker 0 uses ")
    assert notes[0].endswith(" % of the time of one core, which may slow the run")


def test_one_that_changes_a_line_disturbs_no_other() -> None:
    seen: list[Mapping[str, Any]] = []

    class Changing(Callback):
        def on_log(self, line: Any) -> None:
            seen.append(dict(line))
            line.clear()

    assert deliver(Changing(), Changing(), lines=1) == []
    assert seen == [{"step": 0}, {"step": 0}]


def test_nothing_is_delivered_before_the_start_and_after_the_end() -> None:
    callback = Recorder()
    trackers = Trackers()
    trackers.add("tracker", callback, lambda text: None)
    trackers.note("before")
    assert not trackers.started
    trackers.end(END)
    assert callback.calls == []
