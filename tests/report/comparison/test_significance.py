"""McNemar's test of two runs, against a count by hand, and where there is nothing to compare."""

import dataclasses
import math

import numpy as np
import pytest

from fastdeit.report.comparison.significance import compare_heads
from fastdeit.report.predictions import RecordedPredictions


def predict(wrong: list[int], count: int = 100) -> RecordedPredictions:
    """Return predictions of one head that is wrong for these rows."""
    answers = np.zeros(count, np.int32)
    answers[wrong] = 1
    rows = np.arange(count, dtype=np.int32)
    labels = np.zeros(count, np.int32)
    return RecordedPredictions(1, "f00d", ("a", "b"), rows, labels, {"model/both": answers})


def test_p_is_that_of_the_exact_test() -> None:
    # both are wrong for row 99; the other run alone for five rows, the first alone for fifteen
    (test,) = compare_heads(predict([*range(15), 99]), predict([*range(20, 25), 99]))
    assert (test.head, test.images, test.only_first, test.only_other) == ("model/both", 100, 5, 15)
    tail = sum(math.comb(20, wins) for wins in range(6)) / 2**20
    assert test.p == pytest.approx(2 * tail)
    assert str(test) == "p = 0.041 (5 against 15 images)"


def test_equal_answers_differ_by_chance() -> None:
    (test,) = compare_heads(predict([3]), predict([3]))
    assert (test.p, test.only_first, test.only_other) == (1.0, 0, 0)


def test_only_images_that_both_have_count() -> None:
    (test,) = compare_heads(predict([0], 50), predict([1, 60]))
    assert (test.images, test.only_first, test.only_other) == (50, 1, 1)


@pytest.mark.parametrize(
    "other",
    [
        dataclasses.replace(predict([1]), images="other"),
        dataclasses.replace(predict([1]), classes=("a", "c")),
        dataclasses.replace(predict([1]), rows=np.arange(100, 200, dtype=np.int32)),
        dataclasses.replace(predict([1]), answers={}),
    ],
    ids=["other images", "other classes", "no image in common", "no head in common"],
)
def test_what_cannot_be_compared_gives_no_test(other: RecordedPredictions) -> None:
    assert compare_heads(predict([0]), other) == []
