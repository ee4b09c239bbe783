"""`fastdeit doctor`: its lines, JSON, exit codes, mistakes, and that no file is left."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fastdeit import __main__ as entry
from fastdeit.commands import doctor
from fastdeit.commands.doctor import doctor_command
from fastdeit.doctor import examination, scratch
from fastdeit.doctor.findings import Target, absent
from fastdeit.doctor.summary import Row
from fastdeit.doctor.table import CHECKS, CLEAN, GROUP, TRIAL
from tests.support.doctor_ranks import shorten_table
from tests.support.launching import ROOT, clean_environment

SCARCE = "warning"
"""Of the output folder, in a child that no test can patch, on a disk that is nearly full."""
FEW_CHECKS = """
import sys
import threading
from fastdeit.commands.doctor import doctor_command
from tests.support.doctor_ranks import shorten_table
shorten_table("import torch", "import timm", "CUDA", "NCCL", "port")
sys.exit(doctor_command(sys.argv[1:]))
"""


@pytest.fixture(autouse=True)
def few_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(examination, "CHECKS", examination.CHECKS)
    monkeypatch.setattr(doctor, "count_gpus", lambda: 0)
    shorten_table("system", "output folder", "locks")


def test_each_check_has_a_line_and_no_file_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert doctor_command(["--quick", "--output-dir", str(tmp_path)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    found = [words[0] for words in lines[:-1] if words[0] != "change:"]
    assert found in (["ok", "ok", "ok"], ["ok", SCARCE, "ok"])
    assert lines[-1] in (["3", "ok"], ["1", "warning,", "2", "ok"])
    assert not list(tmp_path.iterdir())


def test_what_is_broken_ends_with_1_and_says_what_to_change(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert doctor_command(["--quick", "--output-dir", "/proc/new"]) == 1
    lines = capsys.readouterr().out.splitlines()
    (number,) = [number for number, line in enumerate(lines) if line.startswith("broken")]
    assert "/proc cannot be written" in lines[number]
    assert lines[number + 1].strip().startswith("change: set --output-dir")
    assert lines[-1] == "1 broken, 1 ok, 1 not applicable"


def test_json_has_every_finding_and_nothing_else_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert doctor_command(["--quick", "--json", "--output-dir", str(tmp_path)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["status"] in ("ok", SCARCE)
    assert [row["check"] for row in found["checks"]] == ["system", "output folder", "locks"]
    assert set(found["checks"][0]) == {"check", "status", "found", "cure"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data-path", "/no/data"], "--data-path must be an existing local folder"),
        (["--data-path", "s3://bucket"], "--data-path must be an existing local folder"),
        (["--output-dir", __file__], "--output-dir must be a folder or a new name"),
        (["--output-dir", ""], "--output-dir must be a folder or a new name"),
        (["--startup-limit", "0"], "--startup-limit must be above 0 and at most 86400 (got 0.0)"),
        (["--startup-limit", "inf"], "--startup-limit must be finite (got inf)"),
        (["--startup-limit", "nan"], "--startup-limit must be finite (got nan)"),
        (["--startup-limit", "soon"], "--startup-limit must be"),
        (["--fast"], "--fast"),
        (["DATA"], "'DATA' belongs to no flag"),
    ],
)
def test_a_mistake_is_one_line(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        doctor_command(flags)
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_command_that_cannot_import_names_the_doctor(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(argv: object) -> int:
        raise ImportError("no libcudart")

    monkeypatch.setitem(entry.COMMANDS, "train", train)
    monkeypatch.setattr(sys, "argv", ["fastdeit", "train"])
    with pytest.raises(ImportError, match="no libcudart"):
        entry.main()
    assert "fastdeit doctor" in capsys.readouterr().err


def test_a_dead_file_system_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ends = threading.Event()
    monkeypatch.setattr(scratch, "ANSWER_S", 0.05)
    monkeypatch.setattr(scratch, "_look_at", lambda path: ends.wait() if path else None)
    with pytest.raises(SystemExit):
        doctor_command(["--output-dir", "/mnt/dead"])
    ends.set()
    assert "--output-dir must be on a file system that answers" in capsys.readouterr().err


@pytest.mark.parametrize("fault", [KeyboardInterrupt(), SystemExit(143)], ids=["ctrl-c", "term"])
def test_an_interrupted_doctor_leaves_no_file(
    fault: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(target: Target, **_: Any) -> Iterator[Row]:
        Path(target.scratch).mkdir()
        yield Row("system", absent("here"))
        raise fault

    monkeypatch.setattr(doctor, "examine_alone", interrupt)
    try:
        code = doctor_command(["--output-dir", str(tmp_path)])
    except SystemExit as end:
        code = end.code  # type: ignore[assignment]
    assert code == (130 if isinstance(fault, KeyboardInterrupt) else 143)
    assert not list(tmp_path.iterdir())


def test_a_torch_that_cannot_be_imported_leaves_the_command_working(tmp_path: Path) -> None:
    planted = tmp_path / "planted" / "torch"
    planted.mkdir(parents=True)
    (planted / "__init__.py").write_text("raise ImportError('no libcudart')")
    environment = clean_environment() | {"PYTHONPATH": str(planted.parent)}
    command = [sys.executable, "-c", FEW_CHECKS, "--quick", "--output-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "no libcudart" in done.stdout and "needs torch, which is broken" in done.stdout


@pytest.mark.slow
def test_the_whole_doctor_finds_nothing_broken_here(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fastdeit", "doctor", "--output-dir", str(tmp_path)]
    environment = {**clean_environment(), "TRITON_INTERPRET": "0"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert ", the same twice" in done.stdout
    assert not list(tmp_path.iterdir())


def test_no_check_shares_its_name() -> None:
    names = [check.name for check in (*CHECKS, GROUP, TRIAL, CLEAN)]
    assert len(names) == len(set(names))
