"""Text from outside (names of files and classes, messages of libraries) made safe to print.

A name may have bytes that are not UTF-8 (Python then has surrogates, which no stream can encode),
line breaks, a terminal's escape sequences, or marks that reverse the direction of the next text.
"""

import difflib
import shlex
from collections.abc import Iterable

TITLE_LETTERS = 14
"""The largest number of characters of a class's name in the title of a picture."""


def printable(name: object) -> str:
    """Return a name in which every invisible character, and every byte that is not UTF-8, is an
    escape.

    `K\\xe4se` stands for a name with the byte 0xe4 that is not UTF-8, `a\\nb` for one with a line
    break. Printable characters of all scripts and blanks are not changed (`str.isprintable`).
    """
    text = str(name)
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _escape(char) for char in text)


def _escape(char: str) -> str:
    if "\udc80" <= char <= "\udcff":  # Python's form of a byte that is not UTF-8 (PEP 383)
        return f"\\x{ord(char) - 0xDC00:02x}"
    return char.encode("unicode_escape").decode()


def printable_lines(text: object) -> str:
    """Return a text of several lines in which each line is `printable`."""
    return "\n".join(map(printable, str(text).split("\n")))


def shorten(name: object, limit: int) -> str:
    """Return a `printable` name of at most `limit` characters, without the middle of a longer
    one."""
    text = printable(name)
    if len(text) <= limit:
        return text
    end = (limit - 1) // 2
    return f"{text[: limit - 1 - end]}…{text[len(text) - end :]}"


def suggest_near(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Return "; near: ..." with at most two known names that are like this one, or "" if none is;
    cutoff: the smallest similarity, from 0 to 1 (`difflib.get_close_matches`)."""
    near = difflib.get_close_matches(name, list(known), n=2, cutoff=cutoff)
    return f"; near: {', '.join(near)}" if near else ""


def quote_words(*words: object) -> str:
    """Return words as one printable line that bash splits into the same words."""
    return " ".join(map(_quote, map(str, words)))


def _quote(word: str) -> str:
    if word.isprintable():
        return shlex.quote(word)
    plain = word.replace("\\", "\\\\").replace("'", "\\'")
    return f"$'{printable(plain)}'"
