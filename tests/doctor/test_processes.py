"""Checks in child processes: one that fails, crashes or hangs is named, and the next one runs."""

import sys
from pathlib import Path

import pytest

from fastdeit.doctor.findings import Check, Finding, Target
from fastdeit.doctor.processes import run_checks
from fastdeit.doctor.table import find_check
from tests.support.doctor_ranks import plant

TARGET = Target(scratch="/nowhere")


def find(*names: str, limit_s: float = 30) -> dict[str, Finding]:
    checks = [find_check(name) for name in names]
    limited = [Check(one.name, one.run, one.needs, limit_s) for one in checks]
    return {check.name: finding for check, finding in run_checks(limited, TARGET)}


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("raise ImportError('libjpeg.so: cannot open')", "ImportError: libjpeg.so: cannot open"),
        ("raise RuntimeError('the driver\\n is broken')", "RuntimeError: the driver is broken"),
        ("import ctypes; ctypes.string_at(0)", "the process died: Segmentation fault"),
        ("import os; print('last words', flush=True); os._exit(3)", "exit code 3; last words"),
    ],
    ids=["missing", "raises", "crashes", "exits"],
)
def test_a_library_that_fails_is_named_and_the_next_check_runs(
    source: str, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    plant(tmp_path, "PIL", source)
    findings = find("import Pillow", "Pillow's JPEG", "system")
    assert findings["import Pillow"].status == "broken"
    assert found in findings["import Pillow"].found
    assert findings["Pillow's JPEG"].status == "not applicable"
    assert findings["Pillow's JPEG"].found == "needs Pillow, which is broken"
    assert findings["system"].status == "ok"


def test_a_check_that_hangs_ends_at_its_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    plant(tmp_path, "PIL", "import time; time.sleep(1000)")
    findings = find("import Pillow", "system", limit_s=2)
    assert findings["import Pillow"].found == "no answer in 2 s"
    assert findings["system"].status == "ok"
