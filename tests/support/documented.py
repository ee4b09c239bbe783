"""The Python blocks of a document, and one of them run as a rank."""

import os
import re
from pathlib import Path

from tests.support.launching import ROOT


def read_blocks(name: str) -> list[str]:
    """Return the Python blocks of a document in docs/, in their order."""
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def run_as_rank(block: str, folder: Path, name: str) -> None:
    """Run a block in `folder`; write `losses`, which it has made, to NAME-rankR."""
    os.chdir(folder)
    space: dict[str, object] = {}
    exec(f"import fastdeit, torch\n{block}", space)
    (folder / f"{name}-rank{os.environ.get('RANK', 0)}").write_text(repr(space["losses"]))
