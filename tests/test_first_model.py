"""docs/first-model.md: its commands and programs run, print what the page shows, and give equal
accuracies."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.launching import ROOT
from tests.support.pages import PageRun, Shown, fill_block, run_commands, run_page, working_in

PAGE = ROOT / "docs" / "first-model.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("page")


@pytest.fixture(scope="module")
def done(folder: Path) -> PageRun:
    with working_in(folder):
        return run_page(PAGE.read_text())


def ask(folder: Path, command: str) -> Any:
    """Return the JSON value that a command prints."""
    output = io.StringIO()
    with working_in(folder), contextlib.redirect_stdout(output):
        run_commands(f"{command} --json")
    return json.loads(output.getvalue())


@pytest.mark.slow
def test_the_page_shows_what_is_printed(done: PageRun) -> None:
    assert len(done.shown) > 4
    for shown in done.shown:
        fill_block(shown)


@pytest.mark.slow
def test_accuracy_is_equal_at_each_step(done: PageRun, folder: Path) -> None:
    labels = done.names["labels"]
    trained = json.loads((folder / "runs/student/summary.json").read_text())["results"]
    accuracies = {head: trained[f"model/{head}/top1"] for head in ("cls", "dist", "both")}
    assert accuracies["both"] > 80 and len(labels) == 48
    for source in ("runs/student", "local-dir:exported"):
        scores = ask(folder, f"fastdeit evaluate {source} --data-path photographs")["results"]
        assert {head: scores[f"model/{head}/top1"] for head in accuracies} == accuracies
    predicted = ask(folder, "fastdeit predict photographs/val --checkpoint runs/student")
    for head, accuracy in accuracies.items():
        hits = sum(
            Path(image["image"]).parent.name == image["first"][head]
            for image in predicted["images"]
        )
        assert 100 * hits / 48 == accuracy
    for answers in (done.names["logits"], done.names["outputs"]):
        hits = int((answers.argmax(1) == labels).sum())
        assert 100 * hits / 48 == accuracies["both"]


def test_a_line_that_is_not_printed_is_found() -> None:
    printed = ["a 1.5 of 20", "┃ top-1 %   ┃ 97.92 ┃", "done"]
    shown = "a 17 of 3\n...\n┃ top-1 % ┃ 3 ┃\n"
    assert fill_block(Shown(shown, printed)) == "a 1.5 of 20\n...\n┃ top-1 %   ┃ 97.92 ┃\n"
    for wrong in ("a 17 from 3\n", "done\na 1 of 2\n", "a 1 of 20\na 1 of 20\n"):
        with pytest.raises(AssertionError, match="not printed"):
            fill_block(Shown(wrong, printed))


def test_a_command_that_fails_is_found(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    with working_in(tmp_path), pytest.raises((AssertionError, SystemExit)):
        run_commands("fastdeit index .")
