"""The log of a run: metrics.jsonl and TensorBoard events."""

import io
import json
import os
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.summary.writer.record_writer import RecordWriter

from fastdeit.storage.atomic import atomic_write_text
from fastdeit.storage.jsonl import AppendOnlyFile, read_json_lines
from fastdeit.storage.run_folder import RunFolder


class MetricLog:
    """metrics.jsonl, one JSON object per line with the optimizer step, and the same numbers as
    TensorBoard scalars.

    warn: called when the disk refuses, which ends no run. Until `open` is called, and on all ranks
    but 0, `write` does nothing.
    """

    def __init__(self, folder: RunFolder, warn: Callable[[str], None] = lambda line: None) -> None:
        self._folder = folder
        self._warn = warn
        self._lines: AppendOnlyFile | None = None
        self._events: AppendOnlyFile | None = None

    def open(self, step: int) -> None:
        """Drop the lines of steps after `step`, so that the files read as if the run had never been
        interrupted. On rank 0 alone. Raise OSError if the folder cannot be written."""
        self.close()
        path = self._folder.metrics
        kept = [line for line in read_json_lines(path) if line["step"] <= step] if step else []
        atomic_write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._lines = AppendOnlyFile(path, self._warn)
        self._events = AppendOnlyFile(_new_events(self._folder.tensorboard), self._warn)
        self._events.append(_record(file_version="brain.Event:2"))
        # TensorBoard drops what it has of this step and later ones. `SummaryWriter(purge_step=)`
        # writes the same, in a thread that dies on a full disk.
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._events.append(_record(step=step + 1, session_log=start))

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        if self._lines is None or self._events is None:
            return
        self._lines.append(json.dumps({"step": step, **values}).encode() + b"\n")
        scalars = [
            summary_pb2.Summary.Value(tag=name, simple_value=value)
            for name, value in values.items()
            if isinstance(value, int | float)
        ]
        self._events.append(_record(step=step, summary=summary_pb2.Summary(value=scalars)))

    def close(self) -> None:
        for file in (self._lines, self._events):
            if file is not None:
                file.close()
        self._lines = None
        self._events = None


def _new_events(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder / f"events.out.tfevents.{time.time_ns():020}.{socket.gethostname()}.{os.getpid()}"


def _record(**fields: Any) -> bytes:
    """Encode an event as TensorBoard's files hold it."""
    buffer = io.BytesIO()
    RecordWriter(buffer).write(event_pb2.Event(wall_time=time.time(), **fields).SerializeToString())
    return buffer.getvalue()
