"""A run in a process of its own, and what it leaves."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks.official.runs import read_deit_top1, read_our_top1, run_command

# two lines of the form of deit's log.txt
LOG = """\
{"train_lr": 1e-06, "train_loss": 2.2, "test_loss": 2.2, "test_acc1": 14.4, "epoch": 0}
{"train_lr": 1e-03, "train_loss": 2.1, "test_loss": 1.9, "test_acc1": 35.5, "epoch": 1}
"""
BURN = """
import subprocess, sys, time
if len(sys.argv) == 1:
    subprocess.run([sys.executable, __file__, "child"], check=True)
else:
    while time.process_time() < 0.3:
        pass
"""


def test_deits_top1_is_that_of_the_last_epoch(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text(LOG)
    assert read_deit_top1(tmp_path) == 35.5


def test_our_top1_is_that_of_the_model_at_the_end(tmp_path: Path) -> None:
    results = {"ema/both/top1": 1.0, "model/both/top1": 36.5, "model/cls/top1": 2.0}
    (tmp_path / "summary.json").write_text(json.dumps({"results": results}))
    assert read_our_top1(tmp_path) == 36.5


def test_the_cpu_time_of_children_counts(tmp_path: Path) -> None:
    script = tmp_path / "burn.py"
    script.write_text(BURN)
    usage = run_command([sys.executable, str(script)], tmp_path / "runs" / "one")
    assert 0.3 <= usage.cpu_s < 30 and usage.wall_s > 0


def test_a_failed_run_shows_its_last_lines(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; print('no teacher'); sys.exit(3)"]
    with pytest.raises(RuntimeError, match=r"exit code 3\nno teacher"):
        run_command(command, tmp_path / "run")


def test_what_an_unfinished_run_left_is_removed(tmp_path: Path) -> None:
    output = tmp_path / "run"
    output.mkdir()
    (output / "log.txt").write_text(LOG)
    run_command([sys.executable, "-c", "pass"], output)
    assert not output.exists()
