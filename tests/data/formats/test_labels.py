"""The rule for labels: which values are numbers, which are names, and which are refused."""

import math
from collections.abc import Sequence
from decimal import Decimal

import numpy as np
import pytest

from fastdeit.data.formats.labels import Label, note_labels, number_labels, read_label
from fastdeit.data.formats.listing import DataError


def numbered(
    values: Sequence[object], classes: Sequence[str] | None = None
) -> tuple[list[int], tuple[str, ...]]:
    """Return the labels and classes of values as a list has them."""
    labels, known = number_labels(
        [read_label(value) for value in values], classes, lambda row: f"list, line {row + 1}"
    )
    return labels.tolist(), known


TWELVE = tuple(map(str, range(12)))


@pytest.mark.parametrize(
    "form",
    [int, str, float, Decimal, "{}.0".format, "+{}".format, " {} ".format, "{:.6e}".format],
    ids=["int", "text", "float", "decimal", "text-3.0", "plus", "blanks", "exponent"],
)
def test_whole_numbers_are_numbers_in_every_form(form) -> None:
    assert numbered([form(number) for number in range(12)]) == (list(range(12)), TWELVE)


def test_forms_of_numbers_may_be_mixed() -> None:
    assert numbered([10, "2", "2.0", 3.0, "007"])[0] == [10, 2, 2, 3, 7]


ODD: dict[str, tuple[object, str]] = {
    "negative": ("-1", "has the label -1; a label must be a whole number of 0 to 1048575"),
    "word": (
        "unknown",
        "has the label 'unknown', which is no whole number, among 12 labels that",
    ),
    "nan": ("NaN", "has the label 'NaN', which is no whole number"),
    "fraction": ("2.5", "has the label 2.5, which is no whole number"),
    "float": (2.5, "has the label 2.5, which is no whole number"),
    "true": (True, "has the label 'True', which is no whole number"),
    "control": ("\x1b[2J", r"has the label '\\x1b\[2J', which is no whole number"),
    "large": ("1" * 5000, "has the label '1{20}…1{19}', which is no whole number"),
}


@pytest.mark.parametrize("kind", ODD)
def test_one_odd_label_among_numbers_is_refused_by_its_line(kind: str) -> None:
    odd, message = ODD[kind]
    with pytest.raises(DataError, match=f"^list, line 13 {message}"):
        numbered([*TWELVE, odd, "3"])


def test_one_number_among_names_is_refused_by_its_line() -> None:
    with pytest.raises(DataError, match="line 3 has the label 4, which is a number, among 3"):
        numbered(["ant", "bee", "4", "cat"])


def test_fractions_alone_are_no_classes() -> None:
    with pytest.raises(DataError, match="line 1 has the label 0.5; a label must be"):
        numbered(["0.5", "1.5"])


def test_names_are_sorted() -> None:
    assert numbered(["dog", " ant ", "dog", "v1.0"]) == ([1, 0, 1, 2], ("ant", "dog", "v1.0"))
    assert numbered([True, False]) == ([1, 0], ("False", "True"))
    assert numbered([b"dog", "ant"]) == ([1, 0], ("ant", "dog"))


@pytest.mark.parametrize("value", [None, math.nan, "", "  ", Decimal("nan")])
def test_what_is_empty_is_no_label(value: object) -> None:
    assert read_label(value) is None


@pytest.mark.parametrize("value", [[1], {"label": 1}, 1j])
def test_what_can_be_no_label_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="a label must be a whole number or a name .got"):
        read_label(value)


KNOWN: dict[str, tuple[Sequence[object], Sequence[str], list[int]]] = {
    "names": (["cat", "ant"], ("ant", "bee", "cat"), [2, 0]),
    "positions": (["2", 0, 1.0], ("ant", "bee", "cat"), [2, 0, 1]),
    "numbers as names, sorted as text": (["2", 10, "1.0"], ("1", "10", "2"), [2, 1, 0]),
    "numbers with zeros before": ([2, "001"], ("001", "002"), [1, 0]),
    "names of both kinds": (["unknown", "3"], ("unknown", "3"), [0, 1]),
    "numbers at their own positions, and names": ([2, 0, 1], ("0", "1", "A"), [2, 0, 1]),
}


@pytest.mark.parametrize("kind", KNOWN)
def test_labels_of_known_classes(kind: str) -> None:
    values, classes, expected = KNOWN[kind]
    assert numbered(values, classes) == (expected, tuple(classes))


UNKNOWN: dict[str, tuple[Sequence[Label], Sequence[str], str]] = {
    "name": (["ant", "dog"], ("ant", "bee"), "line 2 has the label 'dog', not one of the 2"),
    "position": ([1, 2], ("ant", "bee"), "line 2 has the label 2, not one of .*: ant, bee"),
    "negative": ([1, -1], ("ant", "bee"), "line 2 has the label -1, not one"),
    "mixture": (["ant", "1"], ("ant", "bee"), "line 2 has the label 1, not one"),
    "number that no class is called": ([1, 0], ("1", "2"), "line 2 has the label 0, not one"),
    "position or name": ([0, 1, 2], ("cat", "0", "1"), "line 3 has the label 2, not one"),
}


@pytest.mark.parametrize("kind", UNKNOWN)
def test_labels_that_are_no_class_are_refused(kind: str) -> None:
    labels, classes, message = UNKNOWN[kind]
    with pytest.raises(DataError, match=message):
        numbered(labels, classes)


def test_classes_without_images_are_noted() -> None:
    every = np.arange(12)
    assert note_labels(every, TWELVE) == []
    assert note_labels(every[1:], TWELVE) == [
        "no training image has the class 0, of 12 classes; labels count from 0"
    ]
    assert note_labels(every[[0, 1, 11]], TWELVE) == [
        "no training image has the class 2, 3, 4, 5, 6, 7, 8, 9, 10, of 12 classes"
    ]


@pytest.mark.parametrize("name", ["nan", "NA", "null"])
def test_a_class_that_seems_to_mean_no_class_is_noted(name: str) -> None:
    (note,) = note_labels(np.array([0, 1, 1]), ("ant", name))
    assert note.startswith(f"'{name}' is a class of 2 training images; ")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("cafe\u0301", "classes: a, caf\u00e9 (the same letters as one of them in another form of"),
        ("A", "classes: a, caf\u00e9 (another case than 'a')"),
        ("b", "classes: a, caf\u00e9"),
    ],
)
def test_a_class_that_only_looks_like_another_is_explained(name: str, hint: str) -> None:
    with pytest.raises(DataError) as caught:
        number_labels([name], ["a", "caf\u00e9"], str)
    assert hint in str(caught.value) and ("(" in str(caught.value)) == ("(" in hint)
