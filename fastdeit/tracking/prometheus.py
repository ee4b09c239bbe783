"""Prometheus: a text file with the newest numbers of a run, for node_exporter's textfile collector.

Source of the format: prometheus.io/docs/instrumenting/exposition_formats, text format 0.0.4.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fastdeit.storage.atomic import atomic_write_text
from fastdeit.tracking.callbacks import Callback, RunEnd, RunStart


class _Metric(NamedTuple):
    """A metric of the file. name: without the prefix, with its unit; field: of a line of the log;
    scale: from the field's unit to that of the name, a base unit of Prometheus."""

    name: str
    field: str
    about: str
    kind: str = "gauge"
    scale: float = 1.0


_METRICS = (
    _Metric("steps_total", "step", "Optimizer steps done.", "counter"),
    _Metric("images_seen_total", "images_seen", "Samples trained on.", "counter"),
    _Metric("skipped_steps_total", "skipped", "Steps skipped for a bad number.", "counter"),
    _Metric("epochs", "epoch", "Epochs done, a fraction within one."),
    _Metric("loss", "loss", "Training loss, mean since the last line of the log."),
    _Metric("gradient_norm", "grad_norm", "Norm of the gradient before clipping, mean."),
    _Metric("learning_rate", "lr", "Learning rate of the last step."),
    _Metric("images_per_second", "images_per_s", "Training images per second, all processes."),
    _Metric("data_wait_ratio", "data_wait", "Share of the time in which a step waited for data."),
    _Metric("mfu_ratio", "mfu", "Model FLOPs as a share of the device's peak."),
    _Metric("memory_bytes", "memory_gb", "Most memory of a device in use.", scale=1e9),
    _Metric("quarantined_images", "quarantined", "Images excluded as damaged."),
    _Metric("remaining_seconds", "seconds_left", "Estimate of the time to the end of the run."),
    _Metric("elapsed_seconds", "seconds_elapsed", "Time trained, all starts of the run."),
    _Metric("last_log_timestamp_seconds", "time", "Time of the last line of the log."),
)
_ACCURACY = "validation_accuracy_ratio"
_RUNNING = "running"
_EVERY_S = 1.0  # a scrape comes every 15 s or less often


class PrometheusFile(Callback):
    """FILE.prom, replaced as a whole with each line of the log, at most once a second.

    run: its name, the label of every value. warn: called when the disk refuses, and when it accepts
    again.
    """

    def __init__(self, path: Path, run: str, warn: Callable[[str], None]) -> None:
        self._path = path
        self._labels = {"run": run}
        self._warn = warn
        self._line: dict[str, Any] = {}
        self._scores: dict[str, float] = {}
        self._written_at = -math.inf
        self._refused = False

    def on_start(self, run: RunStart) -> None:
        self._labels["recipe"] = run.recipe
        self._line = {"step": run.step, "time": time.time()}
        self._write(running=True)

    def on_log(self, line: Mapping[str, Any]) -> None:
        self._line = dict(line)
        if time.monotonic() - self._written_at >= _EVERY_S:
            self._write(running=True)

    def on_evaluation(self, line: Mapping[str, Any]) -> None:
        self._scores = {name: line[name] for name in line if "/top" in name}
        self._write(running=True)

    def on_end(self, end: RunEnd) -> None:
        self._write(running=False)

    def _write(self, *, running: bool) -> None:
        text = format_metrics(self._labels, self._line, self._scores, running=running)
        self._written_at = time.monotonic()
        try:
            atomic_write_text(self._path, text)
        except OSError as error:
            if not self._refused:
                self._warn(f"--prometheus: {self._path} cannot be written: {error}")
            self._refused = True
            return
        if self._refused:
            self._warn(f"--prometheus: {self._path} can be written again")
        self._refused = False


def format_metrics(
    labels: Mapping[str, str],
    line: Mapping[str, Any],
    scores: Mapping[str, float],
    *,
    running: bool,
) -> str:
    """Return the text of the file.

    labels: of every value; line: of the log; scores: percents by MODEL/HEAD/MEASURE.
    """
    parts = []
    for metric in _METRICS:
        value = line.get(metric.field)
        if isinstance(value, int | float):
            sample: tuple[dict[str, str], float] = ({}, value * metric.scale)
            parts += _describe(metric.name, metric.kind, metric.about, labels, [sample])
    about = "Validation accuracy, 0 to 1, of the last evaluation."
    parts += _describe(_ACCURACY, "gauge", about, labels, _list_accuracies(scores))
    about = "1 while the run trains, 0 once it has ended."
    parts += _describe(_RUNNING, "gauge", about, labels, [({}, float(running))])
    return "".join(f"{part}\n" for part in parts)


def _list_accuracies(scores: Mapping[str, float]) -> list[tuple[dict[str, str], float]]:
    samples = []
    for name, percent in scores.items():
        model, head, measure = name.split("/")
        samples.append(({"model": model, "head": head, "measure": measure}, percent / 100))
    return samples


def _describe(
    name: str,
    kind: str,
    about: str,
    labels: Mapping[str, str],
    samples: Iterable[tuple[Mapping[str, str], float]],
) -> list[str]:
    """Return the lines of a metric; none without a sample."""
    full = f"fastdeit_{name}"
    values = []
    for own, value in samples:
        pairs = ",".join(f'{key}="{_escape(text)}"' for key, text in {**labels, **own}.items())
        values.append(f"{full}{{{pairs}}} {_format(value)}")
    return [f"# HELP {full} {about}", f"# TYPE {full} {kind}", *values] if values else []


def _escape(text: str) -> str:
    text = text.encode(errors="backslashreplace").decode()
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _format(value: float) -> str:
    if math.isfinite(value):
        return repr(float(value))
    return "NaN" if math.isnan(value) else f"{value:+}".replace("inf", "Inf")
