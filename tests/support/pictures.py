"""The pictures of docs/ and README: `python -m tests.support.pictures [NAME ...]` draws them again.

architecture: docs/architecture.svg from docs/architecture.dot, by Graphviz. preview:
docs/preview.png, samples of three photographs.
"""

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from tests.support.documented import read_blocks
from tests.support.launching import ROOT
from tests.support.pages import run_commands, working_in

DOCS = ROOT / "docs"


def draw_architecture() -> None:
    """Draw docs/architecture.svg. Raises CalledProcessError or OSError without Graphviz."""
    source = DOCS / "architecture.dot"
    drawn = subprocess.run(["dot", "-Tsvg", str(source)], check=True, capture_output=True)
    (DOCS / "architecture.svg").write_bytes(drawn.stdout)


def draw_preview() -> None:
    """Draw docs/preview.png: samples of the recipe `deit` at 160 px."""
    with tempfile.TemporaryDirectory() as folder, working_in(Path(folder)):
        names: dict[str, Any] = {}
        exec(read_blocks("first-model.md")[0], names)  # names the photographs
        for name, file in names["photographs"].items():
            _write_halves(Image.open(file), Path("halves", "train", name))
        run_commands(
            "fastdeit preview --data-path halves --input-size 160 --seed 4 --ordinals 0-3 "
            "-o preview.png"
        )
        _shrink(Path("preview.png"), DOCS / "preview.png")


def _write_halves(photograph: Image.Image, folder: Path) -> None:
    """Write the left and the right two thirds of a photograph."""
    folder.mkdir(parents=True)
    third = photograph.width // 3
    for name, left in {"left": 0, "right": third}.items():
        box = (left, 0, left + 2 * third, photograph.height)
        photograph.crop(box).save(folder / f"{name}.jpg", quality=95)


def _shrink(source: Path, target: Path, width: int = 1200) -> None:
    """Write a picture with at most `width` pixels in a row, and 256 colours."""
    picture = Image.open(source).convert("RGB")
    picture.thumbnail((width, picture.height))
    picture.quantize(256, dither=Image.Dither.FLOYDSTEINBERG).save(target, optimize=True)


PICTURES: dict[str, Callable[[], None]] = {
    "architecture": draw_architecture,
    "preview": draw_preview,
}


if __name__ == "__main__":
    for name in sys.argv[1:] or PICTURES:
        PICTURES[name]()
