"""Means on the device, and their record: metrics.jsonl and TensorBoard events in the run folder."""

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
    """metrics.jsonl, a JSON object a line with the optimizer step, and the same numbers as
    TensorBoard scalars.

    start_step: the step a resumed run starts from; later lines of the interrupted run are dropped,
    so that the file reads like that of a run which was never stopped. tell: hears of a disk that
    refuses, which ends no run. Use on rank 0 only. Raises OSError if the folder cannot be written
    at the start.
    """

    def __init__(
        self, folder: RunFolder, start_step: int, tell: Callable[[str], None] = lambda line: None
    ) -> None:
        path = folder.metrics
        kept = (
            [line for line in read_json_lines(path) if line["step"] <= start_step]
            if start_step
            else []
        )
        atomic_write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._lines = AppendOnlyFile(path, tell)
        self._events = AppendOnlyFile(_new_events(folder.tensorboard), tell)
        self._events.append(_record(file_version="brain.Event:2"))
        start = event_pb2.SessionLog(
            status=event_pb2.SessionLog.START
        )  # what TensorBoard has of later steps is dropped
        self._events.append(_record(step=start_step + 1, session_log=start))

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        self._lines.append(json.dumps({"step": step, **values}).encode() + b"\n")
        numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
        scalars = [
            summary_pb2.Summary.Value(tag=name, simple_value=value)
            for name, value in numbers.items()
        ]
        self._events.append(_record(step=step, summary=summary_pb2.Summary(value=scalars)))

    def close(self) -> None:
        self._lines.close()
        self._events.close()


def _new_events(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder / f"events.out.tfevents.{time.time_ns():020}.{socket.gethostname()}.{os.getpid()}"


def _record(**fields: Any) -> bytes:
    """An event as TensorBoard's files hold it."""
    buffer = io.BytesIO()
    RecordWriter(buffer).write(event_pb2.Event(wall_time=time.time(), **fields).SerializeToString())
    return buffer.getvalue()
