"""The file of predictions: written, read, damaged, and removed when a run goes back."""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from fastdeit.report.predictions import (
    RecordedPredictions,
    read_predictions,
    remove_later,
    write_predictions,
)
from tests.report.test_record import PREDICTIONS


@pytest.mark.parametrize(("classes", "kind"), [(2, "int16"), (40_000, "int32")])
def test_predictions_are_read_as_they_were_written(tmp_path: Path, classes: int, kind: str) -> None:
    file = tmp_path / "p.parquet"
    last = np.array([classes - 1, 0], np.int32)
    names = tuple(f"{number}\udcff" for number in range(classes))
    mine = dataclasses.replace(PREDICTIONS, classes=names, answers={"ema/both": last})
    write_predictions(file, mine)
    assert str(pq.read_schema(file).field("ema/both").type) == kind
    found = read_predictions(file)
    assert found is not None
    assert found.classes == names and found.answers["ema/both"].tolist() == last.tolist()
    for name in ("rows", "labels"):
        column = getattr(found, name)
        assert column.dtype == np.int32 and column.tolist() == getattr(mine, name).tolist()


def test_no_file_is_no_predictions(tmp_path: Path) -> None:
    assert read_predictions(tmp_path / "p.parquet") is None


def other_table(file: Path) -> None:
    pq.write_table(pq.read_table(file).replace_schema_metadata(), file)


def no_rows(file: Path) -> None:
    pq.write_table(pq.read_table(file).drop_columns("row"), file)


def torn(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-9])


@pytest.mark.parametrize("damage", [other_table, no_rows, torn])
def test_a_file_that_is_none_of_ours_is_named(tmp_path: Path, damage: object) -> None:
    file = tmp_path / "p.parquet"
    write_predictions(file, PREDICTIONS)
    damage(file)  # type: ignore[operator]
    with pytest.raises(ValueError, match=r"p\.parquet: damaged"):
        read_predictions(file)


@pytest.mark.parametrize(("step", "stays"), [(1, False), (2, True), (3, True)])
def test_a_run_that_goes_back_has_no_later_predictions(
    tmp_path: Path, step: int, stays: bool
) -> None:
    file = tmp_path / "p.parquet"
    remove_later(file, step)
    write_predictions(file, PREDICTIONS)
    remove_later(file, step)
    assert file.is_file() == stays


def test_damaged_predictions_are_removed(tmp_path: Path) -> None:
    file = tmp_path / "p.parquet"
    file.write_bytes(b"PAR1")
    remove_later(file, 9)
    assert not file.exists()


def test_what_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "p.parquet"
    write_predictions(file, PREDICTIONS)
    bad: RecordedPredictions = dataclasses.replace(PREDICTIONS, labels=np.array([1], np.int32))
    with pytest.raises(ValueError):
        write_predictions(file, bad)
    found = read_predictions(file)
    assert found is not None and found.step == 2 and [*tmp_path.iterdir()] == [file]
