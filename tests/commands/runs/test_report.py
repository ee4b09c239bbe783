"""`fastdeit report`: where the page is written, mistakes as one line, nothing else touched."""

import re
from pathlib import Path

import pytest

import fastdeit
from fastdeit.commands.runs import report
from fastdeit.report import build
from tests.support.images import write_shapes
from tests.support.report_runs import make_lines, write_finished, write_log
from tests.support.untrained_run import write_run


def list_files(folder: Path) -> dict[str, int]:
    return {
        path.relative_to(folder).as_posix(): path.stat().st_mtime_ns
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_run_with_images_and_weights_has_every_section_and_is_not_touched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run", write_shapes(tmp_path / "data")).path
    before = list_files(run)
    assert report.report_command([str(run), "-o", str(tmp_path / "page.html")]) == 0
    said = capsys.readouterr().out
    assert re.fullmatch(rf"{re.escape(str(tmp_path))}/page.html: \d.\d MB\n", said)
    assert list_files(run) == before
    text = (tmp_path / "page.html").read_text()
    for name in ("samples", "attention", "confusions", "classes", "settings", "events", "paper"):
        assert f'<section id="{name}"' in text
    assert "18 = 16 + 2, learned" in text


def test_weights_that_are_damaged_are_a_note_and_no_end(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", write_shapes(tmp_path / "data"))
    run.model.write_bytes(b"damaged")
    fastdeit.write_report([run.path], tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "the comparison with the paper could not be made: ValueError: " in text
    assert '<section id="paper"' not in text


def test_the_page_of_one_run_is_in_its_folder(tmp_path: Path) -> None:
    run = write_log(tmp_path / "run", make_lines(3))
    report.report_command([str(run)])
    assert (run / "report.html").is_file()


def test_several_runs_and_a_bare_log_have_one_page(tmp_path: Path) -> None:
    runs = [write_finished(tmp_path / name, make_lines(10)) for name in ("a", "b")]
    fastdeit.write_report([*runs, runs[0] / "metrics.jsonl"], tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "<title>Report of 3 runs</title>" in text and "metrics.jsonl" in text


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("", "RUNS must be given"),
        ("RUN RUN", "--output must be given, as -o report.html"),
        ("RUN/metrics.jsonl", "--output must be given, as -o report.html"),
        ("RUN/none", "RUN must be a run folder on this machine"),
        ("EMPTY", "RUN must be a run folder on this machine, or its metrics.jsonl"),
        ("RUN -o RUN/page.png", "--output must be a file that ends in .html"),
        ("RUN -o RUN/none/page.html", "--output must be in a folder that exists"),
        ("RUN -o", "-o must be one value"),
        ("RUN --outputs RUN/page.html", "--outputs is not a flag"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(
    argv: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_log(tmp_path / "run", make_lines(3))
    (tmp_path / "empty").mkdir()
    words = argv.replace("RUN", str(run)).replace("EMPTY", str(tmp_path / "empty")).split()
    before = list_files(tmp_path)
    with pytest.raises(SystemExit) as ended:
        report.report_command(words)
    said = capsys.readouterr()
    assert ended.value.code == 2 and said.out == ""
    assert said.err.startswith(f"fastdeit: error: {message}") and said.err.count("\n") == 1
    assert list_files(tmp_path) == before


def test_without_plotly_the_error_names_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_log(tmp_path / "run", make_lines(3))
    monkeypatch.setattr(build, "name_missing", lambda: "a report needs plotly: pip install it")
    with pytest.raises(SystemExit):
        report.report_command([str(run), "-o", str(tmp_path / "page.html")])
    assert "a report needs plotly" in capsys.readouterr().err


def test_a_page_that_cannot_be_written_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    run = write_log(tmp_path / "run", make_lines(3))
    monkeypatch.setattr(build, "write_page", refuse)
    with pytest.raises(SystemExit) as ended:
        report.report_command([str(run), "-o", str(tmp_path / "page.html")])
    assert ended.value.code == 2
    assert "--output must be" in capsys.readouterr().err


def test_pictures_that_fail_are_a_note_in_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(record: object) -> None:
        raise RuntimeError("no memory for <b>")

    run = write_log(tmp_path / "run", make_lines(3))
    monkeypatch.setattr("fastdeit.report.drawing.draw.draw_pictures", fail)
    build.write_report([run], tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "images and weights could not be made: RuntimeError: no memory for &lt;b&gt;" in text
