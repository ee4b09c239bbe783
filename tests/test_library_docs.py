"""docs/library.md: every block runs; Accelerate on two processes trains as on one."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from fastdeit.data.formats.digits import write_digits
from tests.support.api_reference import DOCUMENT, write_reference
from tests.support.documented import read_blocks, run_as_rank
from tests.support.launching import ROOT, clean_environment
from tests.support.ranks import Ranks


@pytest.mark.slow
def test_every_block_runs_in_order(tmp_path: Path) -> None:
    blocks = read_blocks("library.md")
    assert len(blocks) == 14
    script = tmp_path / "blocks.py"
    script.write_text("\n".join(blocks))
    environment = clean_environment() | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "reprob must be a probability, from 0 to 1 (got 2.0)" in done.stdout


@pytest.mark.slow
def test_accelerate_on_two_processes_has_the_losses_of_one(tmp_path: Path) -> None:
    (block,) = (block for block in read_blocks("library.md") if "import Accelerator" in block)
    write_digits(tmp_path / "data" / "digits")
    losses = {}
    for size in (1, 2):
        ranks = Ranks(
            tmp_path / f"log{size}", run_as_rank, block, tmp_path, str(size), world_size=size
        )
        assert ranks.wait() == 0, ranks.output
        losses[size] = ast.literal_eval((tmp_path / f"{size}-rank{size - 1}").read_text())
    assert len(losses[1]) > 10 and losses[1][0] != losses[1][-1]
    assert losses[2] == pytest.approx(losses[1], abs=1e-5)


def test_the_reference_is_current() -> None:
    assert DOCUMENT.read_text(encoding="utf-8") == write_reference(), (
        "run `python -m tests.support.api_reference`"
    )
