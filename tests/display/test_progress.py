"""Progress bar and console: a live bar on a terminal, lines elsewhere, and no end of a run."""

import io
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fastdeit.display import progress
from fastdeit.display.console import RunConsole
from fastdeit.display.progress import ProgressBar, TimeLeft, format_duration, track
from fastdeit.display.terminal import Terminal
from tests.support.launching import ROOT

RESULTS = {
    f"{model}/{head}/{measure}": 50.0
    for model in ("model", "ema")
    for head in ("cls", "dist", "both")
    for measure in ("top1", "top5")
}


def make_terminal(is_terminal: bool) -> tuple[Terminal, io.StringIO]:
    terminal = Terminal()
    text = io.StringIO()
    terminal.file = text
    terminal._force_terminal = is_terminal
    return terminal, text


def test_lines_come_every_15_seconds_and_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    terminal, text = make_terminal(is_terminal=False)
    bar = ProgressBar(terminal, 100, "recording")
    bar.start()
    for done in range(1, 101):
        now[0] += 1.0
        bar.update(done, "facts", line=f"line {done}")
    bar.stop()
    numbers = [int(number) for number in re.findall(r"line (\d+)", text.getvalue())]
    assert numbers == [16, 32, 48, 64, 80, 96, 100]


def test_terminal_shows_a_bar_and_no_lines() -> None:
    terminal, text = make_terminal(is_terminal=True)
    bar = ProgressBar(terminal, 10, "recording")
    bar.start()
    bar.update(10, "9 images/s", line="a line")
    bar.stop()
    assert "recording" in text.getvalue()
    assert "9 images/s" in text.getvalue()
    assert "a line" not in text.getvalue()


def test_disabled_console_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    console = RunConsole(1, 10, enabled=False)
    console.heading({"run": "x"})
    console.step(10, loss=1.0, lr=0.1, images_per_s=5.0)
    console.note("note")
    console.summary(RESULTS, {"weights": "file"}, "next")
    assert capfd.readouterr() == ("", "")


def test_time_left_is_that_of_the_items_after_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    time_left = TimeLeft(61)
    now[0] += 1000  # the first item compiles
    assert time_left.describe(1) == ""
    now[0] += 2
    assert time_left.describe(2) == "2 min"
    now[0] += 48
    assert time_left.describe(51) == "10 s"
    assert time_left.describe(61) == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (89.4, "89 s"), (90, "2 min"), (3580, "1 h 0 min"), (9000, "2 h 30 min")],
)
def test_duration_has_two_units_at_most(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_tracked_items_pass_through_without_a_bar(capfd: pytest.CaptureFixture[str]) -> None:
    assert list(track(iter(range(5)), 5, "checking")) == [0, 1, 2, 3, 4]
    assert capfd.readouterr() == ("", "")


def test_tracking_stops_its_bar_when_the_items_fail() -> None:
    def fail() -> "progress.Iterator[int]":
        yield 1
        raise ValueError("damaged")

    with pytest.raises(ValueError, match="damaged"):
        list(track(fail(), 5, "checking"))


SPEAKER = """
import sys
from fastdeit.display.console import RunConsole
console = RunConsole(1, 10, enabled=True)
console.heading({"run": "[x]"})
for step in range(1, 11):
    console.step(step, loss=1.0, lr=0.1, images_per_s=5.0)
    console.note("note [bold]")
console.summary({"model/both/top1": 12.5}, {"weights": "a [b]"}, "fastdeit [x]")
open(sys.argv[1], "w").write("done")
"""


@pytest.mark.parametrize("place", ["closed pipe", "full disk", "closed terminal"])
def test_output_that_cannot_be_written_does_not_end_a_run(place: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", SPEAKER, str(tmp_path / "end")]
    if place == "full disk":
        with open("/dev/full", "w") as full:
            subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.DEVNULL, check=False)
    else:
        reader, writer = os.pipe() if place == "closed pipe" else pty.openpty()
        os.close(reader)
        subprocess.run(command, cwd=ROOT, stdout=writer, stderr=subprocess.DEVNULL, check=False)
        os.close(writer)
    assert (tmp_path / "end").read_text() == "done"


def test_summary_names_heads_only_if_there_are_several(capsys: pytest.CaptureFixture[str]) -> None:
    RunConsole(1, 10, enabled=True).summary(RESULTS, {"weights": "a [b]"}, "fastdeit [x]")
    said = capsys.readouterr().out
    assert "distillation head" in said and "EMA, both heads" in said
    assert "agrees" not in said
    assert "weights: a [b]" in said and "next: fastdeit [x]" in said
    one_head = {"model/both/top1": 12.5, "model/both/top5": 20.0, "model/both/agreement": 33.0}
    RunConsole(1, 10, enabled=True).summary(one_head, {}, "next")
    said = capsys.readouterr().out
    assert "model" in said and "both heads" not in said
    assert "12.50" in said and "20.00" in said and "33.00" in said
