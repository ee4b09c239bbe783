"""Disagreement of known classifiers."""

import numpy as np
import pytest

from fastdeit.analysis.disagreement import LABELS, compare_answers


def test_each_pair_has_the_percent_of_different_answers() -> None:
    answers = {"model/cls": np.array([0, 1, 2, 3]), "teacher/both": np.array([0, 1, 0, 0])}
    found = compare_answers(np.array([0, 1, 2, 2]), answers)
    assert found.names == (LABELS, "model/cls", "teacher/both") and found.images == 4
    assert found.percent == ((0, 25, 50), (25, 0, 50), (50, 50, 0))
    assert found.between("teacher/both", "model/cls") == 50


def test_answers_may_be_names() -> None:
    found = compare_answers(["a", "b"], {"one": ["a", "a"], "other": ["longer", "b"]})
    assert found.percent == ((0, 50, 50), (50, 0, 100), (50, 100, 0))


def test_answers_for_other_images_are_refused() -> None:
    for labels, answers in (([0, 1], {"model/cls": [0]}), ([], {"model/cls": []})):
        with pytest.raises(ValueError, match="the same images"):
            compare_answers(labels, answers)
