"""The page of one or several runs as one HTML file, which needs no network.

Every text passes two gates: `printable` (no invisible character reaches the page) and jinja2's
autoescape. The policy in the page's head allows its own scripts, by hash, and nothing else: no
network, no script in an attribute or a link.
"""

import base64
import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

import fastdeit
from fastdeit.audit.findings import Audit
from fastdeit.display.text import printable, shorten
from fastdeit.report.differences import Differences, name_runs
from fastdeit.report.page.plots import read_script
from fastdeit.report.page.sections import build_content
from fastdeit.report.pictures import Pictures
from fastdeit.report.record import RunRecord
from fastdeit.storage.atomic import atomic_write_text

_LETTERS = 40  # of a run's name in legends and tables


def write_page(
    output: Path,
    records: Sequence[RunRecord],
    pictures: Sequence[Pictures],
    differences: Differences | None = None,
    audits: Sequence[Audit | None] = (),
) -> None:
    """Write the page, whole or not at all.

    pictures: those of each run; differences: those of several runs, shown first; audits: one for
    each run, or none. Raises ValueError if plotly is not installed, OSError.
    """
    atomic_write_text(output, render_page(records, pictures, differences, audits))


def render_page(
    records: Sequence[RunRecord],
    pictures: Sequence[Pictures],
    differences: Differences | None = None,
    audits: Sequence[Audit | None] = (),
) -> str:
    """Return the page as `write_page` writes it."""
    names = label_runs(records)
    plotly = read_script()
    templates = _open_templates()
    script = _read(templates, "page.js")
    content = build_content(records, pictures, names, differences, audits)
    title = f"Report of {names[0]}" if len(names) == 1 else f"Report of {len(names)} runs"
    return templates.get_template("page.html").render(
        **vars(content),
        title=title,
        written=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        version=fastdeit.__version__,
        policy=_allow([plotly, script]),
        style=Markup(_read(templates, "page.css")),
        plotly=Markup(plotly),
        script=Markup(script),
    )


def label_runs(records: Sequence[RunRecord]) -> list[str]:
    """Return a short name for each run, all different: that of `name_runs`, and a number where two
    are equal."""
    names = [shorten(name, _LETTERS) for name in name_runs([record.name for record in records])]
    if len(set(names)) == len(names):
        return names
    return [f"{number}: {name}" for number, name in enumerate(names, 1)]


def _open_templates() -> Environment:
    return Environment(
        loader=PackageLoader("fastdeit.report.page"),
        autoescape=True,
        finalize=_make_printable,
        undefined=StrictUndefined,
    )


def _make_printable(value: Any) -> Any:
    """Return the text that a template shows of a value; HTML does not change."""
    is_text = isinstance(value, str) and not isinstance(value, Markup)
    return printable(value) if is_text else value


def _read(templates: Environment, name: str) -> str:
    assert templates.loader is not None
    return templates.loader.get_source(templates, name)[0]


def _allow(scripts: Sequence[str]) -> str:
    """Return the content security policy of a page with these scripts."""
    digests = [hashlib.sha256(script.encode()).digest() for script in scripts]
    hashes = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
