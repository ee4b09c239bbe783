"""`fastdeit estimate`: its table, which the page shows, its JSON, its mistakes."""

import json
import re

import pytest

from fastdeit.commands.runs.estimate import estimate_command
from tests.support.launching import ROOT

PAGE = ROOT / "docs" / "estimate.md"
EXAMPLE = re.compile(r"<!-- example of the command above -->\n\n```text\n(.*?)```", re.DOTALL)
COMMAND = re.compile(r"^fastdeit estimate (--recipe deit .*)$", re.MULTILINE)


def test_the_page_shows_what_the_command_prints(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "98")
    page = PAGE.read_text(encoding="utf-8")
    (example,), (flags,) = EXAMPLE.findall(page), COMMAND.findall(page)
    assert estimate_command(flags.split()) == 0
    printed = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert printed == example.splitlines()


def test_json_has_every_line_with_its_source(capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--json --gpus 16 --gpu A100 --images 4096"
    small = "--model deit_tiny_distilled_patch16_224 --teacher-model resnet18"
    assert estimate_command([*flags.split(), *small.split()]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["device"] == "16 x A100"
    lines = {(line["section"], line["name"]): line for line in found["lines"]}
    assert lines["samples", "steps"]["value"] == 1200
    assert {line["source"] for line in lines.values()} == {"counted", "measured", "model"}
    assert not [line for line in lines.values() if not line["basis"]]


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        ("--gpu v100", "--gpu must be one of b200,"),
        ("--gpus few", "--gpus must be a whole number (got 'few')"),
        ("--disk-gb-per-s 0", "--disk-gb-per-s must be 1e-06 to 1e+06 (got 0.0)"),
        ("--disk-gb-per-s inf", "--disk-gb-per-s must be finite (got inf)"),
        ("--price 1e308", "--price must be 0 to 1e+09 (got 1e+308)"),
        ("--model nosuch", "--model must be deit_"),
        ("--recipe finetune_384", "--model must be given, as --finetune has no weights"),
        ("--input-size 17", "--input-size must be a multiple of the patch size, 16 (got 17)"),
        ("--gpus 7", "--batch-size must be a multiple of 14 on 7 processes (got 1024)"),
        ("--images 10", "--batch-size must be at most 10, the number of training images"),
        ("--recipe transfer --model resnet18", "--images must be given"),
        ("--aug-repeat 3", "--aug-repeat is not a flag; near: --aug-repeats"),
        ("runs/x", "'runs/x' belongs to no flag"),
    ],
)
def test_a_mistake_is_one_line(flags: str, error: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        estimate_command(flags.split())
    written = capsys.readouterr().err
    assert ended.value.code == 2 and error in written and written.count("\n") == 1
