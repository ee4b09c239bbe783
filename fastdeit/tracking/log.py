"""The log of a run: metrics.jsonl and TensorBoard events."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fastdeit.storage.jsonl import AppendOnlyFile, format_line, read_json_lines, replace_lines
from fastdeit.storage.run_folder import RunFolder
from fastdeit.tracking.tensorboard import EventLog
from fastdeit.training.trainer import STATISTICS, StepStatistics


class MetricLog:
    """metrics.jsonl, one JSON object per line, and the same numbers as TensorBoard scalars.

    Every line has `step` (optimizer steps done), `epoch` (epochs done, a fraction within one),
    `images_seen` (the steps times the batch size) and `time` (seconds since 1970).

    steps_per_epoch, batch_size: of the run; warn: called when the disk refuses, which ends no run.
    Until `open` is called, and on all ranks but 0, `write` does nothing.
    """

    def __init__(
        self,
        folder: RunFolder,
        steps_per_epoch: int,
        batch_size: int,
        warn: Callable[[str], None],
    ) -> None:
        self._folder = folder
        self._steps_per_epoch = steps_per_epoch
        self._batch_size = batch_size
        self._warn = warn
        self._lines: AppendOnlyFile | None = None
        self._events: EventLog | None = None

    def open(self, step: int) -> None:
        """Drop the lines of steps after `step`, so that the files read as if the run had never been
        interrupted. On rank 0 alone. Raise OSError if the folder cannot be written."""
        self.close()
        path = self._folder.metrics
        kept = [line for line in read_json_lines(path) if line["step"] <= step] if step else []
        replace_lines(path, kept)
        self._lines = AppendOnlyFile(path, self._warn)
        self._events = EventLog(self._folder.tensorboard, step, self._warn)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Write a line, and its plain numbers as scalars."""
        if self._lines is None or self._events is None:
            return
        now = time.time()
        progress = {
            "step": step,
            "epoch": round(step / self._steps_per_epoch, 4),
            "images_seen": step * self._batch_size,
        }
        line = progress | {"time": round(now, 3), **values}
        self._lines.append(format_line(line).encode())
        scalars = {
            name: value
            for name, value in line.items()
            if isinstance(value, int | float) and name not in ("step", "time")
        }
        self._events.write(step, now, scalars)

    def close(self) -> None:
        for file in (self._lines, self._events):
            if file is not None:
                file.close()
        self._lines = None
        self._events = None


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
    has none of this step: older versions wrote means alone."""
    columns = line.get("by_step", {})
    if step not in columns.get("step", ()):
        return None
    place = columns["step"].index(step)
    values = {name: float(np.float32(columns[name][place])) for name in STATISTICS}
    return values | {"lr": columns["lr"][place]}
