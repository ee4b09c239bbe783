"""Headless Chromium, as the machine has it, for tests of pages and for screenshots.

A page is opened from a file, offline: every other request is refused, and recorded.
"""

import contextlib
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or ""
needs_chromium = pytest.mark.skipif(not CHROMIUM, reason="needs Chromium: apt-get install chromium")
NARROW = 360
WIDE = 1280
Scheme = Literal["light", "dark"]


@dataclass
class OpenPage:
    """A page in the browser, and what it did that it must not do."""

    page: Page
    requests: list[str] = field(default_factory=list)
    """Addresses that it asked for beside files."""
    messages: list[str] = field(default_factory=list)
    """Of its console, and errors of its scripts."""

    def find_overflow(self) -> int:
        """Return the pixels by which the page is wider than its window."""
        return int(self.page.evaluate("document.documentElement.scrollWidth - innerWidth"))


@contextlib.contextmanager
def start_browser() -> Iterator[Browser]:
    """Run Chromium until the block ends."""
    with sync_playwright() as driver:
        # root, as in a container, has no sandbox
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextlib.contextmanager
def open_page(
    browser: Browser,
    file: Path,
    *,
    width: int = WIDE,
    scheme: Scheme = "light",
    script: bool = True,
    strict: bool = True,
) -> Iterator[OpenPage]:
    """Open a file of HTML offline. script: run its scripts; strict: obey its security policy, which
    refuses the scripts of a checker."""
    context = browser.new_context(
        viewport={"width": width, "height": 900},
        color_scheme=scheme,
        java_script_enabled=script,
        bypass_csp=not strict,
        offline=True,
    )
    opened = OpenPage(context.new_page())
    context.route(re.compile(r"^(?!file:|data:)"), lambda route: route.abort())
    context.on("request", lambda request: _note_request(opened, request.url))
    context.on("console", lambda message: opened.messages.append(message.text))
    context.on("weberror", lambda error: opened.messages.append(str(error.error)))
    opened.page.goto(file.absolute().as_uri())
    yield opened
    context.close()


def _note_request(opened: OpenPage, url: str) -> None:
    if not url.startswith(("file:", "data:")):
        opened.requests.append(url)


def check_accessibility(opened: OpenPage, *rules: str) -> list[str]:
    """Return a line for each rule of axe-core that the page breaks; it must not be `strict`. rules:
    the only ones to check."""
    options = {"runOnly": list(rules)} if rules else {}
    found = Axe().run(opened.page, options=options).response["violations"]
    return [f"{rule['id']}: {rule['help']}: {rule['nodes'][0]['html']}" for rule in found]
