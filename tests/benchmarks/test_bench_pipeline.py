"""bench_pipeline: its cases, ratios and table.

.venv/bin/python -m pytest tests/benchmarks/test_bench_pipeline.py, about 4 s
"""

import sys
from pathlib import Path

import pytest

from benchmarks import bench_pipeline
from benchmarks.bench_pipeline import EXPERT, ONCE, OURS, TIMM, TRAIN, WHOLE
from benchmarks.loaders.case import BATCH, Case

CASE = Case("", copies=2)
FOUND = {OURS: [1.0, 1.0, 2.0], TIMM: [4.0, 4.5, 8.0], EXPERT: [3.0, 3.0, 6.0], ONCE: [2.0, 2, 4]}


def arguments(monkeypatch: pytest.MonkeyPatch, *flags: str) -> None:
    monkeypatch.setattr(sys, "argv", ["bench_pipeline", *flags])


def test_ratios_are_medians_of_the_rounds_to_each_peer() -> None:
    row = bench_pipeline.rows_of(CASE, WHOLE, FOUND)[0]
    assert (row["ratio"], row["ratio_train"], row["ratio_expert"]) == ("4.00", "", "2.00")
    assert row["cpu_ms"] == "1.000" and row["copies"] == 2


def test_table_has_a_row_for_each_case_and_a_column_for_each_peer() -> None:
    once = Case("", "tars", size=384)
    single = {name: FOUND[name] for name in bench_pipeline.loaders_of(once, None) if name in FOUND}
    lines = bench_pipeline.table({once: single, CASE: FOUND}).splitlines()
    assert lines[0] == f"| images | {TIMM} | {EXPERT} | {ONCE} |"
    assert lines[2] == "| tars, 384 px, 1 copy | 4.0 | 3.0 |  |"
    assert lines[3] == "| folder, 224 px, 2 copies | 4.0 | 3.0 | 2.0 |"


@pytest.mark.parametrize("images", [64, 512])
def test_no_epoch_ends_within_the_rounds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, images: int
) -> None:
    written = []
    monkeypatch.setattr(bench_pipeline, "write_images", lambda *args: written.append(args))
    arguments(monkeypatch, "--images", str(images), "--data", "folder", "--rounds", "5")
    cases = bench_pipeline.cases_of(bench_pipeline.parse_args(), tmp_path)
    assert len(cases) == 6 and cases[0].samples > 5 * images + 5 * BATCH
    assert [(count * links) for _, count, links in written] == [cases[0].samples]


def test_loaders_of_all_peers_exist() -> None:
    names = set(bench_pipeline.RATIOS["ratio_train"]) | set(bench_pipeline.PARTS) | {TRAIN}
    assert names <= set(bench_pipeline.LOADERS)


@pytest.mark.parametrize("flags", ["--workers 0", "--copies 2 0", "--images -1"])
def test_numbers_below_one_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], flags: str
) -> None:
    arguments(monkeypatch, *flags.split())
    with pytest.raises(SystemExit):
        bench_pipeline.parse_args()
    assert f"{flags.split()[0]} must be 1 or more" in capsys.readouterr().err


def test_folder_without_pillow_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments(monkeypatch, "--pillow-simd", str(tmp_path))
    with pytest.raises(SystemExit):
        bench_pipeline.parse_args()
    assert f"a folder with a package PIL (got {tmp_path})" in capsys.readouterr().err
