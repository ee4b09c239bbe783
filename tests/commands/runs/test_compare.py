"""`fastdeit compare`: the tables, JSON, and each mistake as one line."""

import json
from pathlib import Path

import pytest

from fastdeit.commands.runs.compare import compare_command
from fastdeit.storage.jsonl import replace_lines
from tests.support.launching import ROOT

LOG = str(ROOT / "tests/support/older_log.jsonl")


@pytest.fixture
def run(tmp_path: Path) -> str:
    folder = tmp_path / "run"
    folder.mkdir()
    line = {"step": 3, "lr": 0.1, "images_per_s": 7.0, "digest": "abc"}
    replace_lines(folder / "metrics.jsonl", [line, {"step": 3, "model/both/top1": 12.5}])
    return str(folder)


def test_tables_show_groups_and_say_what_is_not_recorded(
    run: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    assert compare_command([LOG, run]) == 0
    said = capsys.readouterr().out
    assert "settings: not recorded by two of the runs" in said
    assert "12.50 (-75.97)" in said and "abc" in said
    assert compare_command([run, run]) == 0
    assert "machine: not recorded" in capsys.readouterr().out


def test_settings_that_are_equal_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text("optim: {epochs: 3}")
    assert compare_command([str(tmp_path), str(tmp_path)]) == 0
    assert "settings: the same\n" in capsys.readouterr().out


def test_json_is_alone_on_stdout_and_faults_are_on_stderr(
    run: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (Path(run) / "config.yaml").write_text("epochs: [")
    assert compare_command([run, LOG, "--json"]) == 0
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert found["runs"] == ["run", "older_log.jsonl"]
    assert found["groups"]["results"]["model/both/top1"][0] == 12.5
    assert said.err.startswith("not read: ") and "config.yaml" in said.err


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        ([], "RUN must be given"),
        ([LOG], "RUN must be two or more run folders (got"),
        (
            [LOG, "nowhere"],
            "RUN must be a run folder on this machine, or its metrics.jsonl (got nowhere)",
        ),
        ([LOG, LOG, "--step", "1"], "--step is not a flag"),
    ],
)
def test_a_mistake_is_one_line(
    argv: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        compare_command(argv)
    said = capsys.readouterr()
    assert line in said.err and said.err.count("\n") == 1 and said.out == ""
