"""The page in headless Chromium: offline, without an error, by keyboard, narrow and wide."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from fastdeit.report.page.write import write_page
from fastdeit.report.record import read_run
from tests.support.browser import (
    NARROW,
    WIDE,
    OpenPage,
    check_accessibility,
    needs_chromium,
    open_page,
    start_browser,
)
from tests.support.report_runs import HOSTILE, make_lines, make_pictures, write_finished

pytestmark = needs_chromium
DRAWN = "html[data-drawn]"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with start_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of two runs, of which one has a hostile name, as the classes have."""
    folder = tmp_path_factory.mktemp("page")
    paths = [folder / "run", folder / "<img src=x onerror=alert(1)>"]
    few = {"memory_gb", "data_wait", "mfu", "grad_norm", "grad_norm_max"}  # each plot takes time
    lines = [{key: line[key] for key in line if key not in few} for line in make_lines(60)]
    records = [read_run(write_finished(path, lines)) for path in paths]
    write_page(folder / "page.html", records, [make_pictures()] * 2)
    return folder / "page.html"


@pytest.fixture(scope="module")
def opened(browser: Browser, file: Path) -> Iterator[OpenPage]:
    with open_page(browser, file) as opened:
        opened.page.wait_for_selector(DRAWN)
        yield opened


def test_it_loads_from_a_file_without_requests_and_messages(opened: OpenPage) -> None:
    assert opened.requests == []
    assert opened.messages == []


def test_every_plot_is_drawn(opened: OpenPage) -> None:
    plots = opened.page.locator(".plot")
    assert plots.count() == 6
    assert opened.page.locator(".plot:has(svg .scatterlayer path.js-line)").count() == 6


def test_hostile_names_make_no_element_and_run_nothing(opened: OpenPage) -> None:
    page = opened.page
    assert page.locator("img:not([alt])").count() == 0
    assert page.locator("[onerror], [onload], a[href^='javascript']").count() == 0
    assert page.locator("script").count() == 3
    names = page.locator("#classes-table tbody th").all_inner_texts()
    assert names[:6] == list(HOSTILE[:6])


def test_a_table_is_sorted_by_keyboard(opened: OpenPage) -> None:
    page = opened.page
    button = page.get_by_role("button", name="images", exact=True)
    header = page.locator("#classes-table thead th", has=button)
    cells = page.locator("#classes-table tbody td:nth-child(2)")
    button.focus()
    for key, direction in (("Enter", "ascending"), ("Space", "descending")):
        page.keyboard.press(key)
        assert header.get_attribute("aria-sort") == direction
        numbers = [int(text) for text in cells.all_inner_texts()]
        assert numbers == sorted(numbers, reverse=direction == "descending")
    assert len(set(numbers)) == len(HOSTILE)


def test_a_filter_hides_rows_and_reports_how_many_are_left(opened: OpenPage) -> None:
    page = opened.page
    field = page.get_by_label("Rows whose name contains")
    field.fill("JAVASCRIPT")
    assert page.locator("#classes-table tbody tr:visible").count() == 2
    assert page.locator(".filter [role=status]").inner_text() == "2 of 8 rows"
    field.fill("")
    assert page.locator("#classes-table tbody tr:visible").count() == len(HOSTILE)


def test_all_plots_show_the_steps_that_are_named(opened: OpenPage) -> None:
    page = opened.page
    ranges = "[...document.querySelectorAll('.plot')].filter(p => p.layout.yaxis2).map("
    page.get_by_label("from step").fill("10")
    page.get_by_label("to step").fill("20")
    page.keyboard.press("Enter")
    assert page.evaluate(f"{ranges}p => p.layout.xaxis.range)") == [[10, 20]] * 4
    assert page.evaluate(f"{ranges}p => p.layout.xaxis2.range)") == [[1, 2]] * 4
    page.get_by_role("button", name="Whole run").click()
    assert page.evaluate(f"{ranges}p => p.layout.xaxis.range)") == [[0, 60]] * 4


def test_a_button_of_the_legend_hides_its_curve(opened: OpenPage) -> None:
    button = opened.page.get_by_role("button", name="run, total")
    lines = opened.page.locator("[data-figure=plot-1] .scatterlayer path.js-line")
    before = lines.count()
    button.press("Enter")
    assert button.get_attribute("aria-pressed") == "false"
    assert lines.count() == before - 1
    button.press("Enter")
    assert lines.count() == before


@pytest.mark.slow
def test_light_and_dark_narrow_and_wide_are_readable(browser: Browser, file: Path) -> None:
    with open_page(browser, file, width=NARROW, strict=False) as opened:
        page = opened.page
        page.wait_for_selector(DRAWN)
        curve = page.locator(".plot path.js-line").first
        light = curve.evaluate("path => path.style.stroke")
        assert opened.find_overflow() == 0
        assert check_accessibility(opened) == []
        page.emulate_media(color_scheme="dark")
        expect(curve).not_to_have_css("stroke", light)
        page.set_viewport_size({"width": WIDE, "height": 900})
        assert opened.find_overflow() == 0
        assert check_accessibility(opened, "color-contrast") == []


@pytest.mark.slow
def test_without_scripts_the_numbers_are_there(browser: Browser, file: Path) -> None:
    with open_page(browser, file, script=False) as opened:
        page = opened.page
        assert page.locator("noscript .note").is_visible()
        assert not page.locator(".plot").first.is_visible()
        assert page.locator("#classes-table").is_visible()
        page.get_by_text("Training loss in words and numbers").click()
        assert page.get_by_text("Training loss, loss; at most").is_visible()
