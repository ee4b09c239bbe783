"""The pictures of docs/, drawn: `python -m tests.support.pictures [NAME ...] [--run RUN]`.

architecture: docs/architecture.svg from docs/architecture.dot, by Graphviz. preview:
docs/preview.png, samples of three photographs. ablation: docs/ablation.png, curves out of
benchmarks/results. report: docs/report-*.png, parts of the report of a
run (runs/fashion_mnist), by Chromium.
"""

import argparse
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from tests.support.documented import read_blocks
from tests.support.launching import ROOT
from tests.support.pages import run_commands, working_in

DOCS = ROOT / "docs"
# of the report: a picture -> its first and last part, by the id of their headings
PARTS = {
    "report-curves.png": ("curves-title", "events-title"),
    "report-attention.png": ("attention-title", "tokens-title"),
}
# pictures are loaded when they are seen
_LOAD = """Promise.all(Array.from(document.images, image => {
  image.loading = "eager";
  return image.decode();
}))"""
WIDTH = 1200
HEIGHT = 1150


def draw_architecture(run: Path) -> None:
    """Draw docs/architecture.svg. Raises CalledProcessError or OSError without Graphviz."""
    source = DOCS / "architecture.dot"
    drawn = subprocess.run(["dot", "-Tsvg", str(source)], check=True, capture_output=True)
    (DOCS / "architecture.svg").write_bytes(drawn.stdout)


def draw_preview(run: Path) -> None:
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


def draw_ablation(run: Path) -> None:
    """Draw docs/ablation.png: the curves of the ablation's arms."""
    from benchmarks.arms.curves import draw_curves
    from benchmarks.tables import read_rows

    with tempfile.TemporaryDirectory() as folder:
        drawn = Path(folder, "ablation.png")
        draw_curves(read_rows("cpu-ablation-curves"), drawn)
        _shrink(drawn, DOCS / "ablation.png")


def draw_report(run: Path) -> None:
    """Draw docs/report-*.png: parts of the report of a run, in light colours."""
    from fastdeit.report.build import write_report
    from tests.support.browser import open_page, start_browser

    with tempfile.TemporaryDirectory() as folder, start_browser() as browser:
        page = Path(folder, "report.html")
        write_report([run], page)
        with open_page(browser, page, width=WIDTH) as opened:
            opened.page.wait_for_selector(".js-plotly-plot .main-svg")
            opened.page.evaluate(_LOAD)
            for name, (first, last) in PARTS.items():
                top, end = (_place(opened.page, heading) for heading in (first, last))
                taken = Path(folder, name)
                opened.page.screenshot(
                    path=taken,
                    full_page=True,
                    clip={"x": 0, "y": top, "width": WIDTH, "height": min(end - top, HEIGHT)},
                )
                _shrink(taken, DOCS / name)


def _place(page: Any, heading: str) -> float:
    """Return the pixels of a page above a heading."""
    script = f"document.getElementById({heading!r}).getBoundingClientRect().top + scrollY"
    return float(page.evaluate(script)) - 12


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


PICTURES: dict[str, Callable[[Path], None]] = {
    "architecture": draw_architecture,
    "preview": draw_preview,
    "ablation": draw_ablation,
    "report": draw_report,
}


def main() -> None:
    """Draw the pictures that the command line names, or all."""
    parser = argparse.ArgumentParser(prog="tests.support.pictures", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(PICTURES)}")
    parser.add_argument("--run", type=Path, default=ROOT / "runs" / "fashion_mnist")
    parsed = parser.parse_args()
    names = parsed.names or list(PICTURES)
    if unknown := set(names) - set(PICTURES):
        parser.error(f"NAME must be one of {', '.join(PICTURES)} (got {', '.join(unknown)})")
    if "report" in names and not parsed.run.is_dir():
        parser.error(f"--run must be the folder of a run (got {parsed.run})")
    for name in names:
        PICTURES[name](parsed.run)


if __name__ == "__main__":
    main()
