"""TensorBoard: curves in groups, samples, settings as text and for the HParams tab."""

import io
import os
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from fastdeit.storage.jsonl import AppendOnlyFile
from fastdeit.tracking.callbacks import Callback, RunEnd, RunStart
from fastdeit.tracking.names import group_line, group_scores

_METRICS = ("validation/model/both/top1", "validation/ema/both/top1", "train/loss")
"""Columns of the HParams tab, in addition to the settings."""


class TensorBoard(Callback):
    """Events in a new file of `folder` for each start of the run.

    hparams: settings that runs are compared by in the HParams tab. warn: called when the disk
    refuses; the events then wait in memory.
    """

    def __init__(
        self, folder: Path, hparams: Mapping[str, Any], warn: Callable[[str], None]
    ) -> None:
        self._folder = folder
        self._hparams = dict(hparams)
        self._warn = warn
        self._file: AppendOnlyFile | None = None

    def on_start(self, run: RunStart) -> None:
        self._open(run.step)
        experiment, session, _ = _describe_session(self._hparams)
        self._append(run.step, experiment)
        self._append(run.step, session)
        self._append(run.step, _write_text("settings", run.settings))
        self._append(run.step, _write_text("run", {"recipe": run.recipe, **run.facts}))

    def on_images(self, step: int, images: np.ndarray, titles: list[str]) -> None:
        from torch.utils.tensorboard import summary

        for number, image in enumerate(images):
            tag = f"samples/{number:02}"
            self._append(step, summary.image(tag, image, dataformats="HWC"))
        rows = []
        for number, title in enumerate(titles):
            cell = title.replace("|", "\\|")
            rows.append(f"| {number:02} | {cell} |")
        table = "\n".join(["| sample | class |", "|---|---|", *rows])
        self._append(step, summary.text("samples", table))

    def on_log(self, line: Mapping[str, Any]) -> None:
        self._append(line["step"], _write_scalars(group_line(line)), line["time"])

    def on_evaluation(self, line: Mapping[str, Any]) -> None:
        self._append(line["step"], _write_scalars(group_scores(line)), line["time"])

    def on_rollback(self, step: int) -> None:
        self._open(step)

    def on_end(self, end: RunEnd) -> None:
        if end.outcome == "finished":  # the first status of a run is the one that is shown
            self._append(end.step, _describe_session(self._hparams)[2])
        self._close()

    def _open(self, step: int) -> None:
        """Begin a file; TensorBoard drops what it has of steps after `step`."""
        self._close()
        self._file = AppendOnlyFile(_name_file(self._folder), self._warn)
        self._file.append(_encode(time.time(), file_version="brain.Event:2"))
        # `SummaryWriter(purge_step=)` writes the same, in a thread that dies on a full disk
        self._file.append(_encode(time.time(), step=step + 1, session_log=_begin_session()))

    def _append(self, step: int, summary: Any, wall_time: float | None = None) -> None:
        assert self._file is not None, "on_start comes first"
        self._file.append(_encode(wall_time or time.time(), step=step, summary=summary))

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file = None


def _name_file(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder / f"events.out.tfevents.{time.time_ns():020}.{socket.gethostname()}.{os.getpid()}"


def _begin_session() -> Any:
    from tensorboard.compat.proto import event_pb2  # may be broken beside another protobuf

    return event_pb2.SessionLog(status=event_pb2.SessionLog.START)


def _describe_session(hparams: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """Return the summaries of the HParams tab: which columns it has, this run's settings, and that
    the run is finished."""
    from torch.utils.tensorboard import summary

    values = {name: _to_hparam(hparams[name]) for name in hparams}
    return summary.hparams(values, dict.fromkeys(_METRICS, 0.0))  # type: ignore[no-any-return]


def _to_hparam(value: Any) -> Any:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number else str(value)


def _write_text(tag: str, value: Mapping[str, Any]) -> Any:
    """Return a summary with a value as YAML, set as code in TensorBoard's Markdown."""
    from torch.utils.tensorboard import summary

    lines = yaml.safe_dump(_to_plain(value), sort_keys=False, allow_unicode=True).splitlines()
    text = "\n".join(f"    {line}" for line in lines)
    return summary.text(tag, text)


def _to_plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _to_plain(item) for name, item in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _write_scalars(scalars: Mapping[str, float]) -> Any:
    from tensorboard.compat.proto import summary_pb2

    values = [summary_pb2.Summary.Value(tag=tag, simple_value=scalars[tag]) for tag in scalars]
    return summary_pb2.Summary(value=values)


def _encode(wall_time: float, **fields: Any) -> bytes:
    """Encode an event as TensorBoard's files hold it."""
    from tensorboard.compat.proto import event_pb2
    from tensorboard.summary.writer.record_writer import RecordWriter

    buffer = io.BytesIO()
    RecordWriter(buffer).write(event_pb2.Event(wall_time=wall_time, **fields).SerializeToString())
    return buffer.getvalue()
