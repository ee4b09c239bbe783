"""The table of distances: a row for each, for those above their bound too."""

import csv
from pathlib import Path

import numpy as np
import pytest

from tests.support.places import Distances


def test_a_distance_is_written_down_before_it_is_held_to_its_bounds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    distances = Distances(tmp_path / "table.csv", "cpu", "some test")
    ours, expected = np.array([0, 255, 7], np.uint8), np.array([0, 252, 7], np.uint8)
    distances.hold(ours, expected, most=3, mean=1)
    with pytest.raises(AssertionError, match="largest distance: 3.0000, allowed is 2"):
        distances.hold(ours, expected, most=2)
    with pytest.raises(AssertionError, match="mean distance: 1.0000, allowed is 0.9"):
        distances.hold(expected, ours, mean=0.9)
    rows = list(csv.DictReader((tmp_path / "table.csv").open()))
    assert [(row["largest"], row["mean"], row["largest_allowed"]) for row in rows] == [
        ("3", "1", "3"),
        ("3", "1", "2"),
        ("3", "1", ""),
    ]
    assert capsys.readouterr().out.count("some test") == 3
