"""The site of docs/: it is built without a warning, shows what the repository's viewer shows, and
needs no network when it is read."""

import re
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from tests.support.browser import (
    NARROW,
    WIDE,
    Scheme,
    check_accessibility,
    needs_chromium,
    open_page,
    start_browser,
)
from tests.support.launching import ROOT

pytest.importorskip("material", reason="the extra `docs` is not installed")
from mkdocs.commands.build import build
from mkdocs.config import load_config
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import Abort

# rules of axe-core that are ours to keep; the others are the theme's
SEEN = ("color-contrast", "link-in-text-block", "image-alt", "heading-order")
COUNTED = ("table", "tr", "th", "td", "li", "pre", "h1", "h2", "h3", "img", "blockquote")


class Page(HTMLParser):
    """The tags of a page of the site: of its content, and what it loads."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.loaded: list[str] = []
        self._is_content = False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self._is_content |= tag == "article"
        if self._is_content and tag in COUNTED:
            self.tags[tag] += 1
        is_sheet = tag == "link" and found.get("rel") in ("stylesheet", "preconnect", "icon")
        self.loaded += [found.get("src") or ""] if tag in ("script", "img", "iframe") else []
        self.loaded += [found.get("href") or ""] if is_sheet else []

    def handle_endtag(self, tag: str) -> None:
        self._is_content &= tag != "article"


def configure(folder: Path) -> MkDocsConfig:
    return load_config(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(folder))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    build(configure(folder))  # raises Abort for a warning
    return folder


def pages_of(site: Path) -> Iterator[tuple[Path, Path]]:
    """Yield each Markdown file with its page of the site."""
    outside = {
        "overview": "README.md",
        "changelog": "CHANGELOG.md",
        "contributing": "CONTRIBUTING.md",
    }
    for page in sorted(site.rglob("*.html")):
        name = page.relative_to(site).with_suffix("").as_posix()
        places = [ROOT / outside.get(name, f"docs/{name}.md"), ROOT / f"{name}.md"]
        if name != "404":
            yield next(place for place in places if place.is_file()), page


def test_every_document_is_a_page(site: Path) -> None:
    sources = [source for source, _ in pages_of(site)]
    assert {*ROOT.glob("docs/*.md"), *(ROOT / "benchmarks").glob("LOG.md")} < set(sources)
    assert (site / "fastdeit.sbatch").is_file() and (site / "first-model.png").is_file()
    assert not (site / "hooks.py").exists()


def test_a_page_has_the_tables_lists_and_code_of_the_repository(site: Path) -> None:
    for source, page in pages_of(site):
        viewer = MarkdownIt("commonmark").enable("table")
        shown = re.findall(r"<(\w+)", viewer.render(source.read_text(encoding="utf-8")))
        there = Counter(tag for tag in shown if tag in COUNTED)
        assert Page(page).tags == there, source.name


def test_links_have_the_titles_of_pages(site: Path) -> None:
    links = re.findall(r"<a [^>]*>([^<]+)</a>", (site / "overview.html").read_text())
    assert "Fine-tuning" in links and "Data sets" in links
    assert not [link for link in links if link.startswith("docs/")]


def test_no_page_loads_anything_from_the_network(site: Path) -> None:
    for _, page in pages_of(site):
        assert not [place for place in Page(page).loaded if "//" in place], page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(?:https?:)?//", sheet.read_text(encoding="utf-8")), sheet


def test_a_page_outside_the_contents_is_refused(tmp_path: Path) -> None:
    config = configure(tmp_path)
    config.nav = [part for part in config.nav or [] if "Data" not in part]
    with pytest.raises(Abort):
        build(config)


SEARCH_IS_READY = (
    """document.querySelector(".md-search-result__meta").textContent.includes("Type")"""
)


@needs_chromium
@pytest.mark.slow
@pytest.mark.parametrize(("scheme", "width"), [("light", WIDE), ("dark", NARROW)])
def test_pages_are_readable(site: Path, scheme: Scheme, width: int) -> None:
    with start_browser() as browser:
        with open_page(browser, site / "kernels.html", scheme=scheme, width=width) as opened:
            assert opened.find_overflow() <= 0
            assert not opened.requests + opened.messages
        with open_page(browser, site / "first-model.html", scheme=scheme, strict=False) as opened:
            faults = check_accessibility(opened)
            assert not [line for line in faults if line.startswith(SEEN)]


@needs_chromium
def test_the_search_works_from_the_disk(site: Path) -> None:
    with start_browser() as browser, open_page(browser, site / "index.html") as opened:
        opened.page.focus("input.md-search__input")
        # the page listens to keys, and what is typed before it has its index is lost
        opened.page.wait_for_function(SEARCH_IS_READY)
        opened.page.locator("input.md-search__input").press_sequentially("random erasing")
        opened.page.wait_for_selector(".md-search-result__item")
        opened.page.click(".md-search-result__link >> nth=0")
        opened.page.wait_for_url(re.compile(r"(augmentation|glossary)\.html"))
        assert not opened.requests + opened.messages
