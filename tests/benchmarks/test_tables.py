"""Tables of README and docs: they are those of the result files, and change with them.

python -m pytest tests/benchmarks/test_tables.py, 1 s
"""

import csv
from pathlib import Path

import pytest

from benchmarks import tables
from benchmarks.tables import BLOCK, TABLES, fill_blocks, list_pages, split_runs

PAGES = {path.name: path.read_text(encoding="utf-8") for path in list_pages()}
USED = {block[1] for page in PAGES.values() for block in BLOCK.findall(page)}


@pytest.mark.parametrize("name", [name for name, page in PAGES.items() if BLOCK.search(page)])
def test_page_has_the_tables_of_the_result_files(name: str) -> None:
    assert fill_blocks(PAGES[name]) == PAGES[name], "run: python -m benchmarks.tables"


def test_every_table_is_on_a_page_and_has_rows() -> None:
    assert set(TABLES) == USED
    for name, build in TABLES.items():
        heading, *rows = build()
        assert rows and {len(row) for row in rows} == {len(heading)}, name


def test_every_block_has_an_end() -> None:
    for name, page in PAGES.items():
        assert page.count("<!-- table ") == len(BLOCK.findall(page)), name


def test_unknown_table_fails() -> None:
    with pytest.raises(KeyError, match="nothing"):
        fill_blocks("<!-- table nothing -->\n<!-- end of table -->")


def test_newer_rows_change_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = ("model", "impl", "ratio")
    with (tmp_path / "cpu-evaluate.csv").open("w", newline="") as file:
        csv.writer(file).writerows([columns, ("a", "fastdeit", "1.5"), ("a", "fastdeit", "1.25")])
    read = tables.read_rows
    monkeypatch.setattr(tables, "read_rows", lambda name: read(name, tmp_path))
    page = "<!-- table evaluation -->\nold\n<!-- end of table -->"
    assert fill_blocks(page).splitlines()[3] == "| a | 1.25 |"


def test_ratio_is_the_median_of_the_newest_runs() -> None:
    rows = [
        {"impl": impl, "ms": str(ms)}
        for peer_ms in (90, 30, 20, 40)
        for impl, ms in (("ours", 10), ("peer", peer_ms))
    ]
    runs = split_runs(rows, "ours")
    assert len(runs) == 4 and tables.ratio_of(runs, "ours", "peer", "ms") == "3.0"
    assert tables.ratio_of(runs, "ours", "absent", "ms") == ""
