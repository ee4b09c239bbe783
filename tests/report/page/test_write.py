"""The page as HTML: structure, hostile names, runs with little or strange content."""

import html.parser
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fastdeit.report.differences import compare_runs
from fastdeit.report.page import models, plots, write
from fastdeit.report.page.models import tabulate_classes
from fastdeit.report.page.write import label_runs, render_page, write_page
from fastdeit.report.pictures import ClassRow, Pictures
from fastdeit.report.record import RunRecord, read_run
from tests.report.test_record import ATTEMPT
from tests.support.report_runs import (
    HOSTILE,
    encode_image,
    make_lines,
    make_pictures,
    write_finished,
    write_log,
)

VOID = {"meta", "link", "img", "input", "br", "line"}


class Outline(html.parser.HTMLParser):
    """What a page holds: its elements, the text of the visible ones, and headings in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.headings: list[tuple[int, str]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append((int(tag[1]), ""))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.text += data
        if self.headings and any(re.fullmatch("h[1-6]", tag) for tag in self.open):
            level, title = self.headings[-1]
            self.headings[-1] = (level, title + data)

    def find(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.elements if name == tag]


@pytest.fixture(autouse=True)
def short_script(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leave out plotly's own 5 MB, which the browser's tests have."""
    monkeypatch.setattr(write, "read_script", lambda: "/* plotly */")
    yield


def outline(records: list[RunRecord], pictures: list[Pictures] | None = None) -> Outline:
    parsed = Outline()
    parsed.feed(render_page(records, pictures or [Pictures()] * len(records)))
    parsed.close()
    assert not parsed.open
    return parsed


def figures_of(text: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="figures">(.*?)</script>', text, re.S)
    assert found
    return dict(json.loads(found[1], parse_constant=pytest.fail))  # as a browser does


@pytest.fixture
def record(tmp_path: Path) -> RunRecord:
    return read_run(write_finished(tmp_path / "run", make_lines(30)))


def test_headings_follow_one_another_and_name_every_part(record: RunRecord) -> None:
    page = outline([record], [make_pictures(["cat", "dog"])])
    levels = [level for level, _ in page.headings]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(levels, levels[1:], strict=False))
    titles = [title for _, title in page.headings]
    for title in (
        "Overview Curves Events Samples#as#planned Attention#maps Tokens#and#heads "
        "Most#confused#classes Classes Configuration What#is#missing Validation#accuracy "
        "Training#loss Learning#rate Gradient#norm Throughput Wait#for#data Memory MFU"
    ).split():
        assert title.replace("#", " ") in titles


def test_pictures_plots_tables_and_fields_have_names(record: RunRecord) -> None:
    page = outline([record], [make_pictures(["cat", "dog"])])
    assert page.find("html")[0]["lang"] == "en"
    assert all(attrs.get("alt") for attrs in page.find("img")) and page.find("img")
    plots = [attrs for attrs in page.find("div") if attrs.get("class") == "plot"]
    assert len(plots) == 9 and all(attrs["role"] == "img" for attrs in plots)
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert all(attrs["aria-describedby"] in ids and attrs["aria-label"] for attrs in plots)
    assert len(page.find("table")) == len(page.find("caption"))
    assert all(attrs["scope"] in ("row", "col") for attrs in page.find("th"))
    labelled = {attrs.get("for") for attrs in page.find("label")}
    fields = [attrs for attrs in page.find("input") if attrs["type"] == "search"]
    assert fields and all(attrs["id"] in labelled for attrs in fields)
    anchors = {str(attrs["href"]).removeprefix("#") for attrs in page.find("a")}
    assert anchors <= set(ids)


def test_hostile_names_are_text(record: RunRecord) -> None:
    plain = outline([record], [make_pictures(["a", "b", "c", "d", "e", "f", "g", "h"])])
    page = outline([record], [make_pictures()])
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in plain.elements]
    names = [set(attrs) for _, attrs in page.elements]
    assert names == [set(attrs) for _, attrs in plain.elements]
    for name in HOSTILE[:6]:
        assert name in page.text
    assert "&lt;b&gt;" in page.text and "49" not in page.text.split("{{7*7}}")[1][:2]
    assert "\\u202eright\\u200fto\\u2028left\\xff\\x1b[31m" in page.text
    assert not set("\u202e\u200f\u2028\x1b\udcff") & set(page.text)


def test_hostile_names_of_runs_reach_no_script(tmp_path: Path) -> None:
    folders = [tmp_path / "</script><b>" / "a<i>", tmp_path / "{{7*7}}"]
    records = [read_run(write_finished(folder, make_lines(12))) for folder in folders]
    text = render_page(records, [Pictures()] * 2)
    scripts = re.findall(r"<script.*?</script>", text, re.S)
    assert len(scripts) == 3
    assert "<i>" not in text and "49," not in text
    # plotly reads some tags of HTML in a name
    curve = figures_of(text)["plot-0"]["data"][0]
    assert curve["name"] == "a&lt;i&gt;, EMA, both heads"


def test_the_policy_allows_the_scripts_of_the_page_alone(record: RunRecord) -> None:
    page = outline([record])
    policy = str(page.find("meta")[1]["content"])
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert policy.count("sha256-") == 2
    assert not [attrs for _, attrs in page.elements if any(key.startswith("on") for key in attrs)]
    urls = [
        str(attrs[key]) for _, attrs in page.elements for key in ("src", "href") if key in attrs
    ]
    assert not [url for url in urls if not url.startswith(("#", "data:"))]


def test_values_that_are_not_finite_are_gaps_and_counted(tmp_path: Path) -> None:
    lines = make_lines(9)
    lines[3]["loss"] = "nan"
    lines[4]["loss"] = float("inf")  # json.dumps writes Infinity, as other tools do
    lines[5]["loss"] = 10**400
    lines[6]["loss"] = None
    text = render_page([read_run(write_log(tmp_path / "run", lines))], [Pictures()])
    loss = figures_of(text)["plot-0"]["data"][0]["y"]
    assert loss == [3, 1.5, 1, None, None, None, None, 0.375, 0.333333]
    assert "4 values are not finite" in text


def test_tokens_of_weights_that_are_not_finite_have_no_plot(record: RunRecord) -> None:
    pictures = make_pictures()
    nan = float("nan")
    tokens = tuple(replace(layer, cosine=nan, spread=nan) for layer in pictures.tokens)
    text = render_page([record], [replace(pictures, tokens=tokens)])
    assert "tokens-0" not in figures_of(text) and "by layer" in text


@pytest.mark.parametrize(
    ("elapsed", "duration"),
    [(10.0, "2 min in 2 starts"), (None, "9 s in 2 starts")],
)
def test_the_duration_is_the_time_of_all_starts(
    tmp_path: Path, elapsed: float | None, duration: str
) -> None:
    lines = [
        {**line, "seconds_elapsed": elapsed and elapsed * line["step"]} for line in make_lines(10)
    ]
    start = replace(ATTEMPT, time=0.0)
    found = replace(read_run(write_log(tmp_path / "run", lines)), attempts=(start, start))
    assert f"<td><bdi>{duration}" in render_page([found], [Pictures()])


@pytest.mark.parametrize("count", [0, 1, 10])
def test_a_run_of_few_lines_says_what_is_missing(tmp_path: Path, count: int) -> None:
    folder = write_log(tmp_path / "run", make_lines(count))
    (folder / "config.yaml").write_text("{}")
    page = outline([read_run(folder)])
    titles = [title for _, title in page.headings]
    assert ("Training loss" in titles) == (count > 0)
    assert ("No curves of training" in page.text) == (count == 0)
    assert ("No accuracy" in page.text) == (count < 10)
    assert "not finished; the log has" in page.text


def test_a_log_of_an_older_version_has_its_curves(tmp_path: Path) -> None:
    newer = {"epoch", "time", "memory_gb", "grad_norm", "grad_norm_max", "data_wait", "mfu"}
    lines = [{key: line[key] for key in line if key not in newer} for line in make_lines(20)]
    path = write_log(tmp_path, lines) / "metrics.jsonl"
    page = outline([read_run(path)])
    titles = [title for _, title in page.headings]
    assert "Validation accuracy" in titles and "Throughput" in titles and "Memory" not in titles
    assert "No memory: the run was made by an older version." in page.text


def test_damage_is_named_in_the_page(tmp_path: Path) -> None:
    folder = write_finished(tmp_path / "run", make_lines(10))
    (folder / "inputs.json").write_text("{")
    (folder / "config.yaml").write_text("data: 3")
    page = outline([read_run(folder)])
    assert "inputs.json must be JSON" in page.text
    assert "The folder has no config.yaml that can be read." in page.text


@pytest.mark.parametrize("count", [2, 5])
def test_several_runs_share_plots_and_have_parts_of_their_own(tmp_path: Path, count: int) -> None:
    folders = [write_finished(tmp_path / f"run{n}", make_lines(20 + n)) for n in range(count)]
    records = [read_run(folder) for folder in folders]
    pictures = [make_pictures(["cat", "dog"])] * count
    text = render_page(records, pictures)
    accuracy = figures_of(text)["plot-0"]
    shown = [trace["name"] for trace in accuracy["data"] if trace.get("visible") is True]
    assert shown == [
        f"run{n}, {head}" for n in range(count) for head in ("EMA, both heads", "both heads")
    ]
    assert accuracy["layout"]["xaxis"]["range"] == [0, 20 + count - 1]
    page = outline(records, pictures)
    titles = [title for _, title in page.headings]
    assert titles.count("run0") == titles.count(f"run{count - 1}") >= 4


def test_differences_of_several_runs_come_first(tmp_path: Path) -> None:
    folders = [write_finished(tmp_path / name, make_lines(20)) for name in ("a", "b", "c")]
    (folders[1] / "config.yaml").write_text("run:\n  seed: 7\n")
    (folders[2] / "config.yaml").write_text("run:\n  seed: 8\n")
    records = [read_run(folder) for folder in folders]
    text = render_page(records, [Pictures()] * 3, compare_runs(records))
    page = Outline()
    page.feed(text)
    assert page.headings[1] == (2, "Differences")
    assert re.search(r"--seed</bdi></th><td><bdi></bdi></td><td><bdi>7</bdi>", text)
    assert "Equal in all runs that record them: " in text and "results" in text
    same = render_page(records[:1] * 2, [Pictures()] * 2, compare_runs(records[:1] * 2))
    assert "None is recorded." in same


def test_runs_of_one_name_are_numbered(record: RunRecord) -> None:
    assert label_runs([record, record]) == ["1: run", "2: run"]


def test_runs_have_the_last_parts_that_distinguish_them(tmp_path: Path) -> None:
    folders = [write_log(tmp_path / name / "x", make_lines(1)) for name in ("a", "b")]
    assert label_runs([read_run(folder) for folder in folders]) == ["a/x", "b/x"]


def test_a_long_run_is_thinned_and_says_so(tmp_path: Path) -> None:
    lines = [line for line in make_lines(5000) if "lr" in line]
    lines[2345]["loss"] = 99.0
    text = render_page([read_run(write_log(tmp_path / "run", lines))], [Pictures()])
    loss = figures_of(text)["plot-0"]["data"][0]
    assert len(loss["x"]) <= 801 and max(loss["y"]) == 99.0 and loss["x"][-1] == 5000
    assert "Long curves are thinned" in text and len(text) < 700_000


def test_classes_beyond_a_bound_are_those_with_the_lowest_accuracy(record: RunRecord) -> None:
    rows = [ClassRow(f"class {n}", 5, float(n % 100), "", 0) for n in range(21_843)]
    table = tabulate_classes([Pictures(classes=tuple(rows))], ["run"])
    assert table is not None and "the 2,000 lowest of 21,843" in table.caption
    assert len(table.rows) == 2000
    assert max(float(row[2]) for row in table.rows) < 10


def test_pictures_beyond_a_bound_are_dropped_and_counted(
    record: RunRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = len(encode_image())
    monkeypatch.setattr(models.PictureBudget.__init__, "__defaults__", (size + 1,))
    page = outline([record], [make_pictures(["cat", "dog"])])
    assert len(page.find("img")) == 1
    assert "3 pictures are not shown" in page.text


def test_an_output_that_cannot_be_written_raises_and_leaves_nothing(
    record: RunRecord, tmp_path: Path
) -> None:
    with pytest.raises(OSError):
        write_page(tmp_path / "none" / "page.html", [record], [Pictures()])


def test_without_plotly_the_command_to_install_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'fastdeit\[report\]'"):
        plots.read_script()
