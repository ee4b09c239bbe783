"""Output that nobody reads any more: every command ends without a traceback."""

import os
import sys

import pytest

from fastdeit import __main__ as fastdeit
from fastdeit.display.terminal import Terminal, end_on_closed_pipe
from tests.support.closed_pipe import unread_stdout

FORMS = pytest.mark.parametrize("write_through", [False, True], ids=["buffered", "unbuffered"])


@FORMS
@pytest.mark.parametrize("command", [*fastdeit.COMMANDS, "cache info", "--help"])
def test_help_behind_a_closed_pipe_ends_without_a_traceback(
    command: str, write_through: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["fastdeit", *command.split(), "--help"])
    monkeypatch.setattr(fastdeit, "show_log", lambda: None)
    with unread_stdout(write_through):
        try:
            code = fastdeit.main()
        except SystemExit as end:
            code = int(str(end.code))
        sys.stdout.flush()
    assert code in (0, 141)


@FORMS
def test_command_that_prints_to_a_closed_pipe_exits_with_141(write_through: bool) -> None:
    with (
        unread_stdout(write_through),
        pytest.raises(SystemExit, match="141"),
        end_on_closed_pipe(),
    ):
        for _ in range(10_000):
            print("a line")


@FORMS
def test_command_that_could_finish_returns_its_own_code(write_through: bool) -> None:
    with unread_stdout(write_through):
        with pytest.raises(SystemExit, match="3"), end_on_closed_pipe():
            Terminal().say("a line")
            sys.exit(3)
        sys.stdout.flush()


def test_pipe_of_another_kind_is_an_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with pytest.raises(BrokenPipeError), end_on_closed_pipe():
        os.write(writer, b"a message")
    os.close(writer)
