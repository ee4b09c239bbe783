"""Run folders and pictures for tests of reports, without a training."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from fastdeit.analysis.disagreement import Disagreement
from fastdeit.report.pictures import ClassRow, Confusion, Picture, Pictures, TokenLayer

HOSTILE = (
    "<script>alert(1)</script>",
    "\"><img src=x onerror=alert(1)>' onload='alert(1)",
    "</script><script>alert(1)</script>",
    "{{7*7}}{% raw %}",
    "javascript:alert(1)",
    '<a href="javascript:alert(1)">b</a>',
    "\u202eright\u200fto\u2028left\udcff\x1b[31m",
    "&lt;b&gt;",
)
STEPS_PER_EPOCH = 10


def write_log(path: Path, lines: Sequence[Mapping[str, Any]]) -> Path:
    """Write a run folder that holds a log alone; numbers that JSON lacks have their names."""
    path.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (path / "metrics.jsonl").write_text(text)
    return path


def make_lines(count: int, *, step: int = 1) -> list[dict[str, Any]]:
    """Return lines of a log: one every `step` steps, with an evaluation after each epoch."""
    lines: list[dict[str, Any]] = []
    for number in range(1, count + 1):
        at = number * step
        place = {"step": at, "epoch": at / STEPS_PER_EPOCH, "time": 1e9 + at}
        rates = {"images_per_s": 100.0 + number % 7, "data_wait": 0.01, "memory_gb": 1.5}
        losses = {"loss": 3 / number, "base": 2 / number, "distill": 1 / number}
        norms = {"grad_norm": 1.0 + number % 3, "grad_norm_max": 3.0 + number % 5, "mfu": 0.4}
        lines.append(place | {"lr": 0.001 / number} | rates | losses | norms)
        if at % STEPS_PER_EPOCH == 0:
            lines.append(place | score(50 + min(at / 10, 40)))
    return lines


def score(top1: float) -> dict[str, float]:
    """Return an evaluation of both models and all heads."""
    keys = [f"{model}/{head}" for model in ("model", "ema") for head in ("cls", "dist", "both")]
    return {f"{key}/top1": top1 + place for place, key in enumerate(keys)}


def write_finished(path: Path, lines: Sequence[Mapping[str, Any]]) -> Path:
    """Write the folder of a finished run with events of every kind."""
    write_log(path, lines)
    results = {**score(91.0), "teacher/both/top1": 97.0}
    summary = {"results": results, "steps": lines[-1]["step"], "skipped": 1}
    (path / "summary.json").write_text(json.dumps(summary))
    records = {
        "bad-steps": {"step": 3, "not_finite": [{"rank": 0, "loss": "nan"}]},
        "spikes": {"step": 5, "grad_norm": 90.0, "median": 2.0},
        "quarantine": {"split": "train", "row": 4, "name": HOSTILE[0], "step": 6},
    }
    for name, record in records.items():
        (path / f"{name}.jsonl").write_text(json.dumps(record) + "\n")
    return path


def encode_image(size: tuple[int, int] = (12, 8), kind: str = "PNG") -> bytes:
    """Return an image file of one colour."""
    file = io.BytesIO()
    Image.new("RGB", size, (20, 90, 160)).save(file, kind)
    return file.getvalue()


def make_pictures(names: Sequence[str] = HOSTILE) -> Pictures:
    """Return something of everything, with these names of classes."""
    data = encode_image()
    first, second = names[0], names[1 % len(names)]
    sample = Picture(data, first, f"a sample of {first}", (f"rotate {second}", "erase"))
    layers = ("learned", "input", "layer 1", "final norm")
    return Pictures(
        samples=(sample, Picture(encode_image(kind="WEBP"), second, "another")),
        attention=(Picture(data, second, f"maps of {second}"),),
        head="EMA, both heads",
        confusions=(Confusion(first, second, 7, (Picture(data, first, "confused"),)),),
        classes=tuple(
            ClassRow(name, 10 + place, 100 - 7.5 * place % 100, names[place - 1], place)
            for place, name in enumerate(names)
        ),
        tokens=tuple(TokenLayer(name, 0.1 * place, 0.01) for place, name in enumerate(layers)),
        disagreement=Disagreement(("labels", "model/cls"), ((0.0, 5.0), (5.0, 0.0)), 100),
        notes=(f"no teacher: {first}",),
    )
