"""Hooks of MkDocs: links that leave docs/ work on the site as in the repository.

The pages link to files as they lie in the repository. A Markdown file outside docs/ that a page
links to becomes a page, any other file a part of the site under its own path.
"""

import json
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

_ROOT = Path(__file__).resolve().parents[1]
_LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)\s#]+)")
_NAMED = re.compile(r"\[(?:docs/)?[\w-]+\.md\]\((?!\w+:)([^)\s#]+)")
# of the pages outside docs/ that have another name on the site; mkdocs takes README.md for an index
_NAMES = {
    "README.md": "overview.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
}


def on_files(files: Files, config: Any) -> Files:
    """Add the files outside docs/ that pages link to, and those that these link to."""
    waiting = [file.src_uri for file in files.documentation_pages()]
    while waiting:
        page = waiting.pop()
        source = _path_of(page)
        for link in _LINK.findall((_ROOT / source).read_text(encoding="utf-8")):
            target = _target(source, link)
            name = _name_of(target)
            is_ours = (_ROOT / target).is_file() and not target.startswith("..")
            if is_ours and files.get_file_from_path(name) is None:
                file = File.generated(config, name, abs_src_path=str(_ROOT / target))
                files.append(file)
                waiting += [name] if file.is_documentation_page() else []
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Return a page whose links lead to files of the site, and have titles for names of files."""
    name = page.file.src_uri
    source = _path_of(name)

    def move(link: re.Match[str]) -> str:
        target = _name_of(_target(source, link[1]))
        return posixpath.relpath(target, posixpath.dirname(name) or ".")

    def entitle(link: re.Match[str]) -> str:
        target = _ROOT / _target(source, link[1])
        if not target.is_file():
            return link[0]
        title = target.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
        return f"[{title}]({link[1]}"

    return _LINK.sub(move, _NAMED.sub(entitle, markdown))


def on_post_build(config: Any) -> None:
    """Write the script that lets the search run in a page that was opened from the disk.

    A browser starts no worker from a file, but one from a text in the page.
    """
    scripts = Path(config.site_dir, "assets", "javascripts")
    (worker,) = (scripts / "workers").glob("search.*.min.js")
    text = json.dumps(worker.read_text(encoding="utf-8"))
    (scripts / "iframe-worker.js").write_text(
        f"""if (location.protocol === "file:") {{
  const text = {text};
  const FromServer = window.Worker;
  window.Worker = class extends FromServer {{
    constructor() {{ super(URL.createObjectURL(new Blob([text], {{ type: "text/javascript" }}))); }}
  }};
}}
""",
        encoding="utf-8",
    )


def _target(source: str, link: str) -> str:
    """Return the path in the repository that a link in the file `source` leads to."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), link))


def _path_of(name: str) -> str:
    """Return the path in the repository of a page of the site."""
    outside = {page: path for path, page in _NAMES.items()}
    inside = f"docs/{name}"
    return outside.get(name) or (inside if (_ROOT / inside).exists() else name)


def _name_of(path: str) -> str:
    """Return the path on the site of a file of the repository."""
    return _NAMES.get(path) or (path[len("docs/") :] if path.startswith("docs/") else path)
