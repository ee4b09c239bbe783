"""Table of distances: one row each, also for those above their bound."""

import csv
from pathlib import Path

import numpy as np
import pytest

from tests.support.places import Distances


def test_distance_is_reported_before_it_is_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    distances = Distances(tmp_path / "table.csv", "cpu", "some test")
    ours = np.array([0, 255, 7], np.uint8)
    expected = np.array([0, 252, 7], np.uint8)
    distances.check(ours, expected, most=3, mean=1)
    with pytest.raises(AssertionError, match=r"largest distance must be at most 2 \(got 3.0000\)"):
        distances.check(ours, expected, most=2)
    with pytest.raises(AssertionError, match=r"mean distance must be at most 0.9 \(got 1.0000\)"):
        distances.check(expected, ours, mean=0.9)
    rows = list(csv.DictReader((tmp_path / "table.csv").open()))
    assert [(row["largest"], row["mean"], row["largest_allowed"]) for row in rows] == [
        ("3", "1", "3"),
        ("3", "1", "2"),
        ("3", "1", ""),
    ]
    assert capsys.readouterr().out.count("some test") == 3
