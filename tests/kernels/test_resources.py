"""Registers, shared memory and instructions of every kernel, compiled for sm_90 and sm_80 without a
GPU, against the checked-in tables.

FASTDEIT_TRITON=FOLDER names a folder with another version of Triton (pip install --no-deps --target
FOLDER triton==3.9.0); the slow forms then also compile everything with it.

.venv/bin/python -m pytest tests/kernels/test_resources.py, about 20 s
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import resources
from benchmarks.measuring.harness import Launch, Row
from benchmarks.resources import SHARED_LIMIT, compare, heaviest, problems, read_all, worsened
from fastdeit.kernels import launch_configs
from tests.support.launching import ROOT

COUNTS: Row = {"loads": 4, "loads_128": 4, "stores": 2, "stores_128": 2, "wgmma": 4, "mma": 0}
SIZES: Row = {"registers": 64, "stack": 0, "shared": 1024, "ctas_per_sm": 8}
GOOD: Row = {"kernel": "_k", **SIZES, **COUNTS}
LAUNCH = Launch("k", lambda: None, wgmma=("_k",), streams=("_k",))


OTHER_TRITON = os.environ.get("FASTDEIT_TRITON")


def run_gate(arch: int, flags: list[str], folder: str, cache: Path) -> str:
    """Return what the gate prints, with the Triton in a folder or, for "", the installed one; fail
    if it finds a problem. Runs in a separate process: a kernel decorated under the interpreter
    cannot be compiled."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    gate = subprocess.run(
        [sys.executable, "-m", "benchmarks.resources", "--check", "--arch", str(arch), *flags],
        cwd=ROOT,
        env=environment | {"TRITON_CACHE_DIR": str(cache), "PYTHONPATH": folder},
        capture_output=True,
        text=True,
    )
    assert gate.returncode == 0, gate.stdout + gate.stderr
    return gate.stdout


@pytest.mark.parametrize(
    ("arch", "flags", "fewest"),
    [
        (90, ["--heaviest", "--only", "attention", "norm", "distill"], 7),
        pytest.param(90, [], 180, marks=pytest.mark.slow),
        pytest.param(80, [], 180, marks=pytest.mark.slow),
    ],
    ids=["sm_90, heaviest launches of three operators", "sm_90", "sm_80"],
)
def test_no_kernel_needs_more_than_the_checked_in_table(
    arch: int, flags: list[str], fewest: int, tmp_path: Path
) -> None:
    assert run_gate(arch, flags, "", tmp_path).count(f"sm_{arch} ") > fewest


@pytest.mark.slow
@pytest.mark.skipif(not OTHER_TRITON, reason="FASTDEIT_TRITON names no folder")
@pytest.mark.parametrize("arch", [90, 80])
def test_no_kernel_needs_more_than_the_table_with_another_triton(arch: int, tmp_path: Path) -> None:
    assert run_gate(arch, [], str(OTHER_TRITON), tmp_path).count(f"sm_{arch} ") > 180


@pytest.mark.parametrize("arch", [90, 80])
def test_tables_have_the_same_launches_of_both_tritons_and_none_spills(arch: int) -> None:
    launches: dict[str, set[str]] = {}
    for row in read_all(arch):
        assert row["stack"] == "0" and int(row["shared"]) <= SHARED_LIMIT[arch], row
        launches.setdefault(row["triton"], set()).add(row["launch"])
    assert list(launches) == ["3.6.0", "3.9.0"]
    assert launches["3.6.0"] == launches["3.9.0"]


def test_the_launches_of_every_benchmark_are_compiled() -> None:
    files = (ROOT / "benchmarks").glob("bench_*.py")
    with_launches = {file.stem for file in files if "\nLAUNCHES = " in file.read_text()}
    assert with_launches == {f"bench_{op}" for op in resources.OPS}


@pytest.mark.parametrize("arch", [90, 80])
def test_rows_of_a_table_have_keys_of_their_own(arch: int) -> None:
    keys = [tuple(row[name] for name in ("triton", *resources.KEYS)) for row in read_all(arch)]
    assert len(set(keys)) == len(keys) > 400


def test_written_rows_replace_those_of_the_same_triton(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(resources, "RESULTS", tmp_path)
    (tmp_path / "sm90-resources.csv").write_text(",".join(resources.COLUMNS) + "\n")
    for version, registers in (("3.9.0", 1), ("3.6.0", 2), ("3.9.0", 3)):
        monkeypatch.setattr(resources.triton, "__version__", version)
        monkeypatch.setattr(launch_configs, "TRITON", launch_configs.version_of(version))
        resources.write([{"triton": version, "registers": registers}], 90)
    found = [(row["triton"], row["registers"]) for row in read_all(90)]
    assert found == [("3.6.0", "2"), ("3.9.0", "3")]


@pytest.mark.parametrize("part", [["--only", "mix"], ["--heaviest"]])
def test_a_table_is_not_written_from_a_part_of_the_launches(
    part: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["resources", "--write", *part])
    monkeypatch.setattr(resources, "launches", lambda ops: pytest.fail("compiled"))
    with pytest.raises(SystemExit) as ended:
        resources.main()
    assert ended.value.code == 2


def test_heaviest_launches_cover_every_kernel_of_the_table() -> None:
    rows = read_all(90)
    chosen = {row["kernel"] for row in rows if row["launch"] in heaviest(90)}
    assert chosen == {row["kernel"] for row in rows} and len(chosen) > 15
    assert len(heaviest(90)) < len({row["launch"] for row in rows}) / 3


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"stack": 8}, "spilled"),
        ({"shared": 10**6}, "shared memory"),
        ({"ctas_per_sm": 0}, "no CTA"),
        ({"wgmma": 0}, "wgmma"),
        ({"mma": 2}, "wgmma"),
        ({"loads_128": 0}, "128-bit"),
        ({"stores_128": 0}, "128-bit"),
    ],
)
def test_problems_are_reported(change: Row, word: str) -> None:
    assert not problems(LAUNCH, GOOD, 90)
    assert word in "".join(problems(LAUNCH, GOOD | change, 90))


@pytest.mark.parametrize(
    ("change", "worse"),
    [
        ({"registers": 65}, True),
        ({"registers": 63}, False),
        ({"shared": 2048}, True),
        ({"ctas_per_sm": 7}, True),
        ({"wgmma": 3}, True),
        ({"loads_128": 3}, True),
        ({"loads": 3, "loads_128": 3}, False),
        ({"loads": 2, "loads_128": 3, "stores_128": 1}, True),
    ],
)
def test_regressions_are_reported(change: Row, worse: bool) -> None:
    before = {name: str(value) for name, value in GOOD.items()}
    assert not worsened(GOOD, before)
    assert bool(worsened(GOOD | change, before)) == worse


def test_kernel_missing_from_the_table_is_reported() -> None:
    row = GOOD | {"launch": "new", "constants": ""}
    assert "not in the table" in compare(row, {("other", "_k", ""): {}})[0]
    assert not compare(row, {})  # no table of this Triton
