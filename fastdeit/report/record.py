"""The contents of a run's folder, as one record.

A run may be in progress, stopped, failed or damaged, or of an older version: what is missing is
empty in the record, and `faults` names what could not be read. Nothing is written, no lock is
taken.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from fastdeit.config.changes import read_settings
from fastdeit.config.schema import Config
from fastdeit.display.text import printable
from fastdeit.report.events import RunEvent, is_step, list_events, read_number
from fastdeit.report.predictions import RecordedPredictions, read_predictions
from fastdeit.storage.attempts import Attempt, read_attempts
from fastdeit.storage.json_values import read_json_file
from fastdeit.storage.jsonl import read_json_lines
from fastdeit.storage.run_folder import RunFolder

Line = Mapping[str, Any]
"""A line of metrics.jsonl; docs/log.md has its fields."""

_Value = TypeVar("_Value")


@dataclass(frozen=True)
class RunRecord:
    """A run as its folder shows it. All names and texts are printable."""

    folder: RunFolder
    name: str
    """The path, as it was named."""
    settings: Config | None
    recipe: str
    """The recipe that the run began with; "" if it is not recorded."""
    lines: tuple[Line, ...]
    """The lines of the log that steps gave."""
    evaluations: tuple[Line, ...]
    """The lines of the log that evaluations gave."""
    steps: Mapping[str, np.ndarray]
    """The values of each step by name, float64 (S,), in the order of the log: step, lr, loss, base,
    distill, grad_norm; empty where only means were logged."""
    events: tuple[RunEvent, ...]
    attempts: tuple[Attempt, ...]
    versions: Mapping[str, str]
    """The versions of the last start, by package; of older runs, those of the newest checkpoint."""
    summary: dict[str, Any] | None
    """The content of summary.json, of a finished run."""
    inputs: dict[str, Any]
    """The content of inputs.json."""
    predictions: RecordedPredictions | None
    """The predictions of the newest evaluation."""
    faults: tuple[str, ...]
    """A line for each file that exists and cannot be read."""

    @property
    def last_step(self) -> int:
        """Return the steps that the run has done, as far as its log shows."""
        return max((line["step"] for line in (*self.lines, *self.evaluations)), default=0)

    @property
    def results(self) -> Mapping[str, float]:
        """Return the accuracies of a finished run, else those of the newest evaluation, in percent
        by MODEL/HEAD/MEASURE."""
        found = (self.summary or {}).get("results")
        newest = self.evaluations[-1] if self.evaluations else {}
        chosen = found if isinstance(found, dict) else newest
        return {name: read_number(chosen[name]) for name in chosen if "/" in name}

    @property
    def state(self) -> str:
        """Return finished, failed, or not finished: only its lock would show whether a run without
        a result trains now."""
        if self.summary is not None:
            return "finished"
        return "failed" if self.folder.failure_files() else "not finished"


def read_run(path: Path) -> RunRecord:
    """Return the record of the run in a folder, or of a bare metrics.jsonl.

    Raises ValueError if the path holds no run, or cannot be read.
    """
    try:
        return _read_path(path)
    except OSError as error:
        raise ValueError(f"RUN must be a path that can be read (got {printable(error)})") from None


def _read_path(path: Path) -> RunRecord:
    folder = RunFolder(path)
    metrics = path if path.is_file() else folder.metrics
    parts = _Parts()
    found = parts.read(lambda: read_json_lines(metrics)) or []
    lines = [line for line in found if is_step(line.get("step"))]
    files = (folder.config, folder.attempts, folder.summary)
    if not lines and not any(file.is_file() for file in files):
        name = printable(path)
        raise ValueError(
            f"RUN must be a run folder on this machine, or its metrics.jsonl (got {name})"
        )
    return _read_parts(folder, lines, parts)


class _Parts:
    """The parts of a run that could be read; `faults` has a line for each that could not."""

    def __init__(self) -> None:
        self.faults: list[str] = []

    def read(self, read: Callable[[], _Value]) -> _Value | None:
        """Return what `read` returns, or None if it raises OSError or ValueError."""
        try:
            return read()
        except (OSError, ValueError) as error:
            self.faults.append(printable(" ".join(str(error).split())))
            return None


def _read_parts(folder: RunFolder, lines: Sequence[Line], parts: _Parts) -> RunRecord:
    attempts = parts.read(lambda: read_attempts(folder)) or []
    versions = attempts[-1].versions if attempts else {}
    inputs = parts.read(lambda: _read_object(folder.inputs))
    return RunRecord(
        folder=folder,
        name=printable(folder),
        settings=parts.read(lambda: _read_settings(folder)),
        recipe=printable(attempts[0].recipe) if attempts else "",
        lines=tuple(line for line in lines if "lr" in line),
        evaluations=tuple(line for line in lines if any("/" in name for name in line)),
        steps=_join_steps(lines),
        events=tuple(parts.read(lambda: list_events(folder, attempts)) or ()),
        attempts=tuple(attempts),
        versions=versions or parts.read(lambda: _read_versions(folder)) or {},
        summary=parts.read(lambda: _read_object(folder.summary)),
        inputs=inputs or {},
        predictions=parts.read(lambda: read_predictions(folder.predictions)),
        faults=tuple(parts.faults),
    )


def _read_settings(folder: RunFolder) -> Config | None:
    return read_settings(folder.config, "RUN") if folder.config.is_file() else None


def _read_object(path: Path) -> dict[str, Any] | None:
    """Return the JSON object in a file; None if there is no file. Raises ValueError, OSError."""
    if not path.is_file():
        return None
    value = read_json_file(path)
    if not isinstance(value, dict):
        raise ValueError(f"{path}: damaged: must be a JSON object")
    return value


def _read_versions(folder: RunFolder) -> dict[str, str]:
    """Return the versions in the newest checkpoint; none without one."""
    if not folder.checkpoints.is_dir():
        return {}
    from fastdeit.checkpoint.store import list_checkpoints  # imports torch

    newest = list_checkpoints(folder.checkpoints)[:1]
    found = [_read_object(path / "state.json") or {} for path in newest]
    versions = found[0].get("versions") if found else None
    names = versions if isinstance(versions, dict) else {}
    return {printable(name): printable(version) for name, version in names.items()}


def _join_steps(lines: Sequence[Line]) -> dict[str, np.ndarray]:
    """Return the columns of `by_step` of all lines; NaN where a line lacks a column."""
    tables = [line["by_step"] for line in lines if isinstance(line.get("by_step"), dict)]
    tables = [table for table in tables if isinstance(table.get("step"), list)]
    names = dict.fromkeys(name for table in tables for name in table)
    return {name: np.concatenate([_read_column(table, name) for table in tables]) for name in names}


def _read_column(table: Mapping[str, Any], name: str) -> np.ndarray:
    """Return a column of a table, as long as its column `step`: float64 (S,)."""
    values = table.get(name)
    values = values if isinstance(values, list) else []
    count = len(table["step"])
    column = [read_number(value) for value in values[:count]]
    return np.array(column + [math.nan] * (count - len(column)), np.float64)
