"""The result files of the benchmarks: rows of several dates and benchmarks in one file.

.venv/bin/python -m pytest tests/benchmarks/test_harness.py, about 3 s
"""

import csv
from pathlib import Path

import pytest

from benchmarks.measuring import harness


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_new_columns_are_appended_and_rows_kept(tmp_path: Path) -> None:
    path = tmp_path / "new" / "cpu.csv"
    harness.write_rows(path, [{"impl": "a, b", "ms": 1.5}], ["impl", "ms"])
    harness.write_rows(path, [{"impl": "c", "waits": 0, "ms": 2}], ["impl", "waits", "ms"])
    harness.write_rows(path, [{"impl": "d", "ms": 3}], ["impl", "ms"])
    assert path.read_text().splitlines()[0] == "impl,ms,waits"
    assert rows(path) == [
        {"impl": "a, b", "ms": "1.5", "waits": ""},
        {"impl": "c", "ms": "2", "waits": "0"},
        {"impl": "d", "ms": "3", "waits": ""},
    ]
    assert [file.name for file in path.parent.iterdir()] == ["cpu.csv"]


def test_file_with_the_same_columns_is_appended_in_place(tmp_path: Path) -> None:
    path = tmp_path / "cpu.csv"
    harness.write_rows(path, [{"impl": "a"}], ["impl"])
    before = path.stat().st_ino
    harness.write_rows(path, [{"impl": "b"}], ["impl"])
    assert path.stat().st_ino == before and [row["impl"] for row in rows(path)] == ["a", "b"]


def test_row_with_an_unknown_column_raises(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="images"):
        harness.write_rows(tmp_path / "cpu.csv", [{"impl": "a", "images": 1}], ["impl"])


@pytest.mark.parametrize("path", sorted(harness.RESULTS.glob("*.csv")), ids=lambda path: path.stem)
def test_every_result_row_has_all_columns_of_its_file(path: Path) -> None:
    with path.open(newline="", encoding="utf-8") as file:
        header, *body = csv.reader(file)
    assert body and len(set(header)) == len(header)
    assert {len(row) for row in body} == {len(header)}
