"""The log of a run, metrics.jsonl; its lines go to the trackers, too."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fastdeit.storage.jsonl import AppendOnlyFile, format_line, read_json_lines, replace_lines
from fastdeit.storage.run_folder import RunFolder
from fastdeit.tracking.trackers import Trackers
from fastdeit.training.trainer import STATISTICS, StepStatistics


class MetricLog:
    """metrics.jsonl, one JSON object per line.

    Every line has `step` (optimizer steps done), `epoch` (epochs done, a fraction within one),
    `images_seen` (the steps times the batch size), `time` (seconds since 1970) and
    `seconds_elapsed` (in all starts of the run).

    steps_per_epoch, batch_size: those of the run; trackers: receive each line; warn: called when
    the disk refuses, which ends no run. Until `open` is called, and on all ranks but 0, nothing is
    written. Attributes: logged_step, the last step that the file had a line of before it was
    opened.
    """

    def __init__(
        self,
        folder: RunFolder,
        steps_per_epoch: int,
        batch_size: int,
        trackers: Trackers,
        warn: Callable[[str], None],
    ) -> None:
        self._folder = folder
        self._steps_per_epoch = steps_per_epoch
        self._batch_size = batch_size
        self._trackers = trackers
        self._warn = warn
        self._lines: AppendOnlyFile | None = None
        self._was_open = False
        self._started = time.monotonic()
        self._seconds_before = 0.0
        self.logged_step = 0

    def open(self, step: int) -> None:
        """Drop the lines of steps after `step`, so that the files read as if the run had never been
        interrupted. On rank 0 alone. Raise OSError if the folder cannot be written."""
        self.close()
        path = self._folder.metrics
        lines = read_json_lines(path)
        if not self._was_open:
            self.logged_step = max((line["step"] for line in lines), default=0)
            # also of lines that are dropped: their time was spent
            self._seconds_before = max(map(find_seconds, lines), default=0.0)
        replace_lines(path, [line for line in lines if line["step"] <= step] if step else [])
        self._lines = AppendOnlyFile(path, self._warn)
        self._was_open = True
        self._trackers.send("on_rollback", step)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Write a line of training."""
        self._write("on_log", step, values)

    def write_evaluation(self, step: int, results: Mapping[str, float]) -> None:
        """Write a line of an evaluation: scores by MODEL/HEAD/MEASURE."""
        self._write("on_evaluation", step, results)

    def _write(self, event: str, step: int, values: Mapping[str, Any]) -> None:
        if self._lines is None:
            return
        line = {
            "step": step,
            "epoch": round(step / self._steps_per_epoch, 4),
            "images_seen": step * self._batch_size,
            "time": round(time.time(), 3),
            "seconds_elapsed": round(self.count_seconds(), 3),
            **values,
        }
        self._lines.append(format_line(line).encode())
        self._trackers.send(event, line)

    def count_seconds(self) -> float:
        """Return the seconds that all starts of the run have taken up to now."""
        return self._seconds_before + time.monotonic() - self._started

    def close(self) -> None:
        """Close the file."""
        if self._lines is not None:
            self._lines.close()
        self._lines = None


def find_seconds(line: Mapping[str, Any]) -> float:
    """Return the seconds that the run had taken at a line of the log, 0.0 in older logs."""
    value = line.get("seconds_elapsed")
    return float(value) if isinstance(value, int | float) else 0.0


def list_by_step(steps: Sequence[StepStatistics]) -> dict[str, Any]:
    """Return the values of each step as lists of a line of the log, under `by_step`.

    Losses and gradient norms have as many digits as distinguish fp32 numbers; those of a skipped
    step may be "nan" or "inf". Empty without steps.
    """
    if not steps:
        return {}
    columns: dict[str, Any] = {
        "step": [one.step for one in steps],
        "lr": [one.lr for one in steps],
    }
    for number, name in enumerate(STATISTICS):
        columns[name] = [float(str(np.float32(one.values[number]))) for one in steps]
    return {"by_step": columns}


def find_step(line: Mapping[str, Any], step: int) -> dict[str, float] | None:
    """Return the values of a step from a line of the log, exactly as they were, or None if the line
    has none of this step: older versions wrote only means."""
    columns = line.get("by_step", {})
    if step not in columns.get("step", ()):
        return None
    place = columns["step"].index(step)
    values = {name: float(np.float32(columns[name][place])) for name in STATISTICS}
    return values | {"lr": columns["lr"][place]}
