"""CPU time and bytes of the page of a run that has only a log.

python -m benchmarks.bench_report [--out FOLDER] [--rounds 3]

The logs are as a run writes them, with random numbers: `short` of 1,620 steps, `imagenet` of
375,000 (300 epochs at batch 1024), each with 300 evaluations. in_json: the median divided by that
of parsing the lines of the log with `json`, which every reader needs at least; rounds alternate.

  read     `read_run`: the record
  page     `render_page`: curves, tables, HTML with plotly's script
"""

import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.measuring import harness
from fastdeit.report.page.write import render_page
from fastdeit.report.pictures import Pictures
from fastdeit.report.record import read_run

COLUMNS = ("date", "commit", "cpu", "log", "part", "cpu_s", "in_json", "log_mb", "page_mb")
STEPS = {"short": 1_620, "imagenet": 375_000}
_LINE = 10  # steps
_EVALUATIONS = 300
_FIELDS = "loss base distill grad_norm grad_norm_max images_per_s data_wait mfu memory_gb".split()
_BY_STEP = "lr loss base distill grad_norm".split()
_SCORES = [
    f"{model}/{head}/{measure}"
    for model in ("model", "ema")
    for head in ("cls", "dist", "both")
    for measure in ("top1", "top5")
]


def write_log(folder: Path, steps: int) -> None:
    """Write metrics.jsonl of a run of `steps` steps."""
    draw = random.Random(0).random
    every = max(steps // _LINE // _EVALUATIONS, 1)
    with (folder / "metrics.jsonl").open("w") as file:
        for number in range(1, steps // _LINE + 1):
            place = {"step": number * _LINE, "epoch": number * _LINE / 1250, "time": 1e9 + number}
            file.write(json.dumps(place | _draw_line(number, draw)) + "\n")
            if number % every == 0:
                scores = {name: 80 * draw() for name in _SCORES}
                file.write(json.dumps(place | scores) + "\n")


def _draw_line(number: int, draw: Callable[[], float]) -> dict[str, Any]:
    columns: dict[str, list[float]] = {
        name: [round(draw(), 7) for _ in range(_LINE)] for name in _BY_STEP
    }
    columns["step"] = list(range((number - 1) * _LINE, number * _LINE))
    return {"lr": draw(), **{name: draw() for name in _FIELDS}, "by_step": columns}


def measure(folder: Path, rounds: int) -> tuple[dict[str, float], int]:
    """Return the median CPU seconds of each part, and the bytes of the page."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    record = read_run(folder)
    page = render_page([record], [Pictures()])
    parts: dict[str, Callable[[], object]] = {
        "json": lambda: [json.loads(line) for line in lines],
        "read": lambda: read_run(folder),
        "page": lambda: render_page([record], [Pictures()]),
    }
    seconds: dict[str, list[float]] = {part: [] for part in parts}
    for _ in range(rounds):
        for part, run in parts.items():
            start = time.process_time()
            run()
            seconds[part].append(time.process_time() - start)
    return {part: statistics.median(took) for part, took in seconds.items()}, len(page.encode())


def main() -> None:
    parser = harness.make_parser(__doc__)
    harness.add_out(parser)
    parser.add_argument("--rounds", type=int, default=3, help="rounds, of which medians are taken")
    args = parser.parse_args()
    stamp = harness.environment(torch.device("cpu"))
    rows: list[harness.Row] = []
    for log, steps in STEPS.items():
        with tempfile.TemporaryDirectory() as name:
            write_log(Path(name), steps)
            found, size = measure(Path(name), args.rounds)
            log_mb = round((Path(name) / "metrics.jsonl").stat().st_size / 1e6, 2)
        for part, took in found.items():
            columns: harness.Row = {"log": log, "part": part, "cpu_s": round(took, 3)}
            columns |= {"in_json": round(took / found["json"], 2), "log_mb": log_mb}
            row = stamp | columns | {"page_mb": round(size / 1e6, 2)}
            rows.append({name: row[name] for name in COLUMNS})
            print(f"{log:9s} {part:5s} {took:7.3f} CPU s  {took / found['json']:5.2f} x json")
    harness.write_rows(args.out / "cpu-report.csv", rows, COLUMNS)


if __name__ == "__main__":
    main()
