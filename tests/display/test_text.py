"""Names from outside in a form that can be printed anywhere."""

import os

import pytest

from fastdeit.display.text import printable, printable_lines, shorten


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("Price_$10 [red] :skull:", "Price_$10 [red] :skull:"),
        ("Käse 猫 כלב", "Käse 猫 כלב"),
        (os.fsdecode(b"K\xe4se"), r"K\xe4se"),
        ("\ud800", r"\ud800"),
        ("a\nfastdeit: error\r\t\0", r"a\nfastdeit: error\r\t\x00"),
        ("\x1b[31mred\x9b0m\x7f", r"\x1b[31mred\x9b0m\x7f"),
        ("gpj\u202eexe\u2066\u200b\u2028", r"gpj\u202eexe\u2066\u200b\u2028"),
        ("\U000e0041", r"\U000e0041"),
    ],
)
def test_what_is_no_visible_character_becomes_an_escape(name: str, shown: str) -> None:
    assert printable(name) == shown
    assert printable(shown) == shown, "an escape is printable"
    shown.encode()


def test_lines_stay_lines() -> None:
    assert printable_lines("two\nlines\x1b\n") == "two\nlines\\x1b\n"


@pytest.mark.parametrize("limit", [1, 2, 5, 8, 9])
def test_long_names_lose_their_middle(limit: int) -> None:
    shown = shorten("n01440764", limit)
    assert len(shown) == limit
    assert shown == "n01440764" or "…" in shown
    assert shorten("n01440764", 5) == "n0…64"
    assert shorten("\x1b" * 50, 9) == r"\x1b…\x1b"
