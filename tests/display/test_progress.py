"""Progress bar and console: a live bar on a terminal, lines elsewhere, and no end of a run."""

import io
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.table import Table

from fastdeit.display import progress
from fastdeit.display.console import RunConsole
from fastdeit.display.progress import ProgressBar, TimeLeft, format_duration, track
from fastdeit.display.terminal import Terminal, note_failure
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
    console.step(10, {"loss": 1.0})
    console.note("note")
    console.summary(RESULTS, {"weights": "file"}, ["next"])
    assert capfd.readouterr() == ("", "")


def test_console_shows_what_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    console = RunConsole(2, 5, enabled=True)
    console.step(10, LINE)
    assert capsys.readouterr().out == (
        "epoch 2/2  step 10  loss 1.250  2 h 14 min left  11,900 images/s  data wait 3 %  71.2 GB  "
        "33.2 % MFU  lr 1.00e-03\n"
    )
    console.step(10, {"loss": 1.25, "seconds_left": 0, "grad_norm": 2.0})
    assert capsys.readouterr().out == "epoch 2/2  step 10  loss 1.250\n"


@pytest.mark.parametrize(
    ("width", "shown"),
    [
        (60, "loss 1.250  2 h 14 min left"),
        (79, "loss 1.250  2 h 14 min left  11,900 images/s"),
        (130, "loss 1.250  2 h 14 min left  11,900 images/s  data wait 3 %  71.2 GB  33.2 % MFU"),
        (30, "loss 1.250"),
    ],
)
def test_bar_shows_the_facts_that_fit(width: int, shown: str) -> None:
    terminal, text = make_terminal(is_terminal=True)
    terminal.width = width
    console = RunConsole(300, 1, enabled=True)
    console._terminal = terminal
    console._bar = ProgressBar(terminal, 300, "starting", remaining=False)
    console.heading({"run": "x"})
    console.step(299, LINE)
    console.stop()
    lines = re.sub(r"\x1b\[[0-9?;]*[A-Za-z]|\r", "\n", text.getvalue()).split("\n")
    last = [line.rstrip() for line in lines if "299/300" in line][-1]
    assert last.endswith(shown) and cell_len(last) <= width


@pytest.mark.parametrize(
    ("name", "value", "bar"), [("TERM", "dumb", False), ("NO_COLOR", "1", True), ("TERM", "", True)]
)
def test_bar_needs_a_terminal_that_can_draw_one(
    name: str, value: str, bar: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    terminal, text = make_terminal(is_terminal=True)
    shown = ProgressBar(terminal, 10, "recording")
    shown.start()
    shown.update(10, "9 images/s", line="a line")
    shown.stop()
    assert ("a line" in text.getvalue()) != bar
    assert ("recording" in text.getvalue()) == bar
    if name == "NO_COLOR":
        assert not re.search(r"\x1b\[[0-9;]*[34]\d[0-9;]*m", text.getvalue())


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
    [(0.2, "1 s"), (89.4, "89 s"), (90, "2 min"), (3580, "1 h 0 min"), (9000, "2 h 30 min")],
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


LINE = {
    "loss": 1.25,
    "lr": 0.001,
    "images_per_s": 11900.0,
    "mfu": 0.3325,
    "data_wait": 0.031,
    "memory_gb": 71.2,
    "seconds_left": 8040,
}
HOSTILE = "[red]a[/] [/b] :skull: \x1b[31m \udce4 \u202e 猫"
SHOWN = "[red]a[/] [/b] :skull: \\x1b[31m \\xe4 \\u202e 猫"


def show_everything(text: str) -> None:
    """Print a text in every way that there is."""
    console = RunConsole(1, 10, enabled=True)
    console.heading({"run": text, text: "x"})
    console.note(text)
    console.summary({"model/both/top1": 12.5}, {text: text}, [text])
    table = Table(text, text, title=text)
    table.add_row(text, text)
    Terminal().show(table)
    bar = ProgressBar(Terminal(), 1, text)
    bar.start()
    bar.update(1, text, text, line=text)
    bar.stop()


@pytest.mark.parametrize("width", ["200", "9", "1"])
def test_any_text_is_printed_as_it_is(
    width: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", width)
    show_everything(HOSTILE)
    said = capsys.readouterr().out
    assert not set("\x1b\udce4\u202e") & set(said)
    assert SHOWN in said
    assert "missing" not in said


def test_a_bar_on_a_terminal_shows_any_text_as_it_is() -> None:
    terminal, text = make_terminal(is_terminal=True)
    bar = ProgressBar(terminal, 10, HOSTILE)
    bar.start()
    bar.update(10, HOSTILE, HOSTILE)
    bar.stop()
    assert SHOWN.split()[0] in text.getvalue() and "\udce4" not in text.getvalue()


def test_what_fails_to_be_shown_is_a_note(capsys: pytest.CaptureFixture[str]) -> None:
    class Broken:
        def __rich_console__(self, *_: object) -> None:
            raise KeyError("cell")

    table = Table("heading")
    table.add_row(Broken())  # type: ignore[arg-type]
    terminal = Terminal()
    terminal.show(table)
    terminal.say("next")
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "a table could not be made: KeyError: 'cell'",
        "next",
    ]


def test_failures_are_noted_in_one_line() -> None:
    notes: list[str] = []
    with note_failure("report.html", notes.append):
        raise ValueError("two\nlines \udce4")
    with note_failure("report.html", notes.append):
        raise MemoryError
    assert notes == [
        "report.html could not be made: ValueError: two lines \\xe4",
        "report.html could not be made: MemoryError: no reason given",
    ]


STRICT = """
import logging
from fastdeit.commands.errors import print_error
from fastdeit.display.terminal import show_log
from tests.display.test_progress import HOSTILE, show_everything
show_everything(HOSTILE)
show_log()
logging.getLogger("fastdeit.data").warning("%s", HOSTILE)
print_error(ValueError(HOSTILE))
"""


@pytest.mark.parametrize("encoding", ["ascii:strict", "latin-1:strict", "utf-8:strict"])
def test_strict_streams_take_any_text(encoding: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", STRICT],
        cwd=ROOT,
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": encoding, "LC_ALL": "C"},
        check=True,
    )
    cat = "猫".encode(encoding.split(":")[0], "backslashreplace")
    ending = rb" :skull: \x1b[31m \xe4 \u202e " + cat
    assert ending in done.stdout
    warning, error = done.stderr.splitlines()
    assert warning.endswith(ending)
    assert error.startswith(b"fastdeit: error: ") and error.endswith(ending)


def test_a_closed_pipe_is_no_failure_at_the_end_of_python() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    code = "from fastdeit.display.terminal import Terminal; Terminal().say('x')"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, check=False
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


CLOSED = """
import sys
from fastdeit.display.terminal import replace_closed_streams
replace_closed_streams()
with open("/dev/zero") as file:
    number = file.fileno()
print("x")
sys.stdout.flush()
sys.stderr.flush()
with open(sys.argv[1], "w") as file:
    file.write(str(number))
"""


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_no_file_gets_the_number_of_a_closed_stream(closed: str, tmp_path: Path) -> None:
    script = f'"$0" -c "$1" "$2" {closed}'
    command = ["bash", "-c", script, sys.executable, CLOSED, str(tmp_path / "out")]
    subprocess.run(command, cwd=ROOT, check=True)
    assert int((tmp_path / "out").read_text()) > 2


SPEAKER = """
import sys
from fastdeit.display.console import RunConsole
console = RunConsole(1, 10, enabled=True)
console.heading({"run": "[x]"})
for step in range(1, 11):
    console.step(step, {"loss": 1.0})
    console.note("note [bold]")
console.summary({"model/both/top1": 12.5}, {"weights": "a [b]"}, ["fastdeit [x]"])
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
    RunConsole(1, 10, enabled=True).summary(RESULTS, {"weights": "a [b]"}, ["fastdeit [x]"])
    said = capsys.readouterr().out
    assert "distillation head" in said and "EMA, both heads" in said
    assert "agrees" not in said
    assert "weights: a [b]" in said and "next: fastdeit [x]" in said
    one_head = {"model/both/top1": 12.5, "model/both/top5": 20.0, "model/both/agreement": 33.0}
    RunConsole(1, 10, enabled=True).summary(one_head, {}, ["next"])
    said = capsys.readouterr().out
    assert "model" in said and "both heads" not in said
    assert "12.50" in said and "20.00" in said and "33.00" in said
