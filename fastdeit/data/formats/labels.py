"""Labels: numbers or names of classes, by one rule for all formats.

A label is a number if it is a whole number in any form: 3, "3", "+3", 3.0, "3.0", "3e0". Any other
text is a name. The labels of a split are all numbers or all names: if one of many were a name, all
would be sorted as text, and 10 would come before 2.
"""

import math
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path

import numpy as np

from fastdeit.data.formats.listing import SHOWN, DataError, read_text
from fastdeit.display.text import printable, shorten

MAX_CLASSES = 2**20
"""The largest number of classes where labels are numbers."""
UNKNOWN = -1
"""The label of an image without one; the image also has a fault."""

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
_WORDS_FOR_NONE = frozenset(("nan", "na", "null", "none", "n/a", "<na>"))

Label = int | str
Place = Callable[[int], str]
"""A function from a row to its origin, for errors: the file, perhaps the line, and the image."""


def read_label(value: object) -> Label | None:
    """Return the label that a value of a list or a member is, without blanks at its ends; None if
    there is none (null, NaN, an empty text).

    Raises ValueError for a value that cannot be a label, such as a list or a date.
    """
    if isinstance(value, bytes):
        value = value.decode("utf-8", "surrogateescape")
    if isinstance(value, str):
        return value.strip() or None
    if isinstance(value, bool):
        return str(value)
    if value is None or isinstance(value, int):
        return value
    if isinstance(value, float | Decimal):
        if math.isnan(value):
            return None
        whole = whole_number(str(value))
        return str(value) if whole is None else whole
    raise ValueError(f"a label must be a whole number or a name (got {value!r})")


def whole_number(label: Label) -> int | None:
    """Return the whole number that a label is, or None."""
    if isinstance(label, int):
        return label
    if not _NUMBER.fullmatch(label):
        return None
    number = float(label)
    return int(number) if number.is_integer() else None


def number_labels(
    labels: Sequence[Label | None], classes: Sequence[str] | None, place: Place
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return the labels as numbers, int64 (N,), and the names of the classes.

    labels: values of `read_label`; None becomes UNKNOWN. classes: with None, they are the numbers
    from 0 to the largest, or the sorted names. If all labels are names of classes, they are read as
    names, else all must be places in `classes`; if the name of a class is a number that is not its
    place, numbers are read as names. Raises DataError for a label that is not a class.
    """
    first_rows: dict[Label, int] = {}
    for row, label in enumerate(labels):
        if label is not None:
            first_rows.setdefault(label, row)
    known = _own_classes(first_rows, place) if classes is None else tuple(classes)
    position_of = _positions(first_rows, known, place)
    numbers = [UNKNOWN if label is None else position_of[label] for label in labels]
    return np.array(numbers, np.int64), known


def _own_classes(first_rows: Mapping[Label, int], place: Place) -> tuple[str, ...]:
    """Return the classes of labels that are all numbers or all names."""
    numbers = {label: whole_number(label) for label in first_rows}
    whole = [label for label, number in numbers.items() if number is not None]
    others = [label for label, number in numbers.items() if number is None]
    if whole and others:
        _refuse_mixture(whole, others, first_rows, place)
    for label, row in first_rows.items():
        number = numbers[label]
        is_fraction = number is None and _NUMBER.fullmatch(str(label))
        if is_fraction or (number is not None and not 0 <= number < MAX_CLASSES):
            allowed = f"a whole number of 0 to {MAX_CLASSES - 1}, or a name"
            raise DataError(
                f"{place(row)} has the label {_shown(label)}; a label must be {allowed}. Remove "
                "the images that have no class"
            )
    if others:
        return tuple(sorted(map(str, others)))
    largest = max((number for number in numbers.values() if number is not None), default=-1)
    return tuple(map(str, range(largest + 1)))


def _refuse_mixture(
    numbers: Sequence[Label], names: Sequence[Label], first_rows: Mapping[Label, int], place: Place
) -> None:
    """Raise DataError, which names the first image of the rarer kind of label."""
    odd = min(numbers if len(numbers) < len(names) else names, key=first_rows.__getitem__)
    is_number = odd in numbers
    kind = "a number" if is_number else "no whole number"
    others = f"{len(names)} labels that are not" if is_number else f"{len(numbers)} labels that are"
    raise DataError(
        f"{place(first_rows[odd])} has the label {_shown(odd)}, which is {kind}, among {others}. "
        "All must be numbers or all names: remove the images that have no class, or write each "
        "label as a text (class_3), or name all classes in a classes.txt (docs/data.md)"
    )


def _positions(
    first_rows: Mapping[Label, int], known: tuple[str, ...], place: Place
) -> dict[Label, int]:
    """Return the place of each label in the known classes. Raises DataError for a label that is not
    a class."""
    by_name = {name: position for position, name in enumerate(known)}
    by_number = {whole_number(name): position for name, position in by_name.items()}
    by_number.pop(None, None)
    as_names: dict[Label, int | None] = {}
    as_positions: dict[Label, int | None] = {}
    for label in first_rows:
        number = whole_number(label)
        as_names[label] = by_name.get(str(label), by_number.get(number))
        is_position = number is not None and 0 <= number < len(known)
        as_positions[label] = number if is_position else None
    if any(number != position for number, position in by_number.items()):
        as_positions = as_names
    for positions in (as_names, as_positions):
        found = {label: position for label, position in positions.items() if position is not None}
        if len(found) == len(first_rows):
            return found
    unknown = [label for label, position in as_names.items() if position is None]
    odd = next((label for label in unknown if as_positions[label] is None), unknown[0])
    few = f": {', '.join(map(printable, known))}" if len(known) <= SHOWN else ""
    raise DataError(
        f"{place(first_rows[odd])} has the label {_shown(odd)}, not one of the {len(known)} "
        f"classes{few}{compare_names(str(odd), known)}"
    )


def compare_names(name: str, known: Sequence[str]) -> str:
    """Return a hint, for an error, if a known class looks like an unknown one, or "": on macOS many
    programs write letters and their accents apart (Unicode's form NFD), which no output shows."""
    looks = _fold(name)
    other = next((one for one in known if _fold(one) == looks), None)
    if other is None:
        return ""
    if unicodedata.normalize("NFC", name) != unicodedata.normalize("NFC", other):
        return f" (another case than '{printable(other)}')"
    return " (the same letters as one of them in another form of Unicode: rename one)"


def _fold(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def note_labels(labels: np.ndarray, classes: Sequence[str]) -> list[str]:
    """Return notes on classes without an image, and on those whose name means "no class".

    labels: int64 (N,), of the training images.
    """
    counts = np.bincount(labels, minlength=len(classes))
    notes = []
    empty = np.flatnonzero(counts == 0).tolist()
    if empty:
        named = ", ".join(printable(classes[label]) for label in empty[:SHOWN])
        more = f" and {len(empty) - SHOWN} more" if len(empty) > SHOWN else ""
        first = "; labels count from 0" if empty == [0] else ""
        notes.append(
            f"no training image has the class {named}{more}, of {len(classes)} classes{first}"
        )
    for name, count in zip(classes, counts.tolist(), strict=True):
        if name.lower() in _WORDS_FOR_NONE:
            notes.append(
                f"'{name}' is a class of {count} training images; if it means that they have none, "
                "remove them"
            )
    return notes


def _shown(label: Label) -> str:
    text = shorten(label, 40)
    return text if _NUMBER.fullmatch(text) else f"'{text}'"


def class_names_beside(folder: Path) -> tuple[str, ...] | None:
    """Return the lines of `classes.txt` in `folder`, or None if there is no such file.

    Raises DataError for an empty line and for a repeated name.
    """
    file = folder / "classes.txt"
    if not file.is_file():
        return None
    lines = read_text(file).rstrip().splitlines()
    names = tuple(line.strip() for line in lines)
    if not all(names) or len(set(names)) < len(names) or not names:
        raise DataError(f"{file}: has empty or repeated lines; each line must name a class")
    return names
