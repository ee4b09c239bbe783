"""`fastdeit audit`: its table, its JSON, its exit codes, its mistakes, and the page about it."""

import json
import re
from pathlib import Path

import pytest

from fastdeit.audit.checklist import CHECKLIST, Item
from fastdeit.commands.audit import audit_command
from tests.support.images import CLASSES
from tests.support.launching import ROOT
from tests.support.trained import write_student

SMALL = "--model deit_tiny_distilled_patch16_224 --embed-dim 24 --depth 2 --num-heads 3"
RECIPE = ["--recipe", "deit", *SMALL.split(), "--input-size", "32", "--patch-size", "8"]


def describe_item(item: Item) -> str:
    """Return an item as docs/audit.md has it."""
    flags = f"`{item.flag}`" if item.flag else ""
    return f"| {item.title} | {item.paper} | {item.source} | {flags} | {item.note} |"


def test_the_table_fits_into_80_columns_and_names_the_flags(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert audit_command(RECIPE) == 0
    said = capsys.readouterr().out
    table = [line for line in said.splitlines() if line[:1] in "┏┡└│┃├"]
    assert max(map(len, table)) == 80
    assert "26 equal, 3 differs, 0 not seen" in said
    assert "repeated augmentation: --repeated-aug --aug-repeats 3" in said
    for item in CHECKLIST:
        assert item.title.split()[0] in said


def test_strict_decides_the_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert audit_command([*RECIPE, "--strict", "--json"]) == 1
    described = json.loads(capsys.readouterr().out)
    assert described["differs"] == 3 and described["subject"].startswith("--recipe deit --model")
    differing = [row["name"] for row in described["rows"] if row["status"] == "differs"]
    assert differing == ["size", "resolution", "repeated_augmentation"]


def test_weights_that_only_lack_their_training_are_no_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = write_student(tmp_path / "x", CLASSES) / "model.safetensors"
    assert audit_command([str(weights), "--json"]) == 0
    described = json.loads(capsys.readouterr().out)
    assert (described["kind"], described["cannot_be_seen"]) == ("checkpoint", 21)


@pytest.mark.parametrize(
    ("argv", "error"),
    [
        ("", "RUN|CHECKPOINT must be given, or --recipe NAME"),
        ("deit", "--recipe deit is the recipe (got 'deit')"),
        ("deit-paper", "--recipe deit-paper is the recipe (got 'deit-paper')"),
        ("nothing.pth", "no checkpoint at nothing.pth"),
        ("--recipe nothing", "--recipe must be one of deit, deit_paper"),
        ("runs/x --recipe deit", "'runs/x' belongs to no flag"),
        ("--recipe deit --strict runs/x", "'runs/x' belongs to no flag"),
        ("--recipe deit --drop-path 2", "--drop-path must be at least 0 and below 1 (got 2.0)"),
        ("--config nothing.yaml", "--config must be an existing file (got nothing.yaml)"),
        ("runs/x --aug-repeats 3", "--aug-repeats is not a flag"),
    ],
)
def test_a_mistake_is_one_line(
    argv: str,
    error: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_info:
        audit_command(argv.split())
    said = capsys.readouterr()
    assert exit_info.value.code == 2 and said.out == ""
    assert error in said.err and said.err.count("\n") == 1


def test_the_page_has_the_checklist() -> None:
    page = (ROOT / "docs" / "audit.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| .* \|$", page.partition("| where |")[2], re.MULTILINE)
    assert rows == [describe_item(item) for item in CHECKLIST]
