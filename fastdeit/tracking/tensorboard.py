"""TensorBoard events: the numbers of a run's log as curves."""

import io
import os
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fastdeit.display.terminal import note_failure
from fastdeit.storage.jsonl import AppendOnlyFile


class EventLog:
    """The scalars of a run, in a new file of `folder` for each start.

    step: finished steps; TensorBoard drops what it has of later ones. warn: called when the disk
    refuses, and when TensorBoard's library fails, which ends the events but no run.
    """

    def __init__(self, folder: Path, step: int, warn: Callable[[str], None]) -> None:
        self._folder = folder
        self._step = step
        self._warn = warn
        self._file: AppendOnlyFile | None = None
        self._has_failed = False

    def write(self, step: int, wall_time: float, scalars: Mapping[str, float]) -> None:
        """Write scalars by name. wall_time: in seconds since 1970."""
        if self._has_failed:
            return
        with note_failure(f"{self._folder}", self._give_up):
            file = self._file or self._open()
            file.append(_encode(wall_time, step=step, summary=_summary(scalars)))

    def _open(self) -> AppendOnlyFile:
        """Begin the file; not before the first scalars, as TensorBoard imports slowly."""
        file = self._file = AppendOnlyFile(_new_file(self._folder), self._warn)
        file.append(_encode(time.time(), file_version="brain.Event:2"))
        # `SummaryWriter(purge_step=)` writes the same, in a thread that dies on a full disk
        file.append(_encode(time.time(), step=self._step + 1, session_log=_session_start()))
        return file

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file = None

    def _give_up(self, line: str) -> None:
        self._has_failed = True
        self.close()
        self._warn(line)


def _new_file(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder / f"events.out.tfevents.{time.time_ns():020}.{socket.gethostname()}.{os.getpid()}"


def _session_start() -> Any:
    from tensorboard.compat.proto import event_pb2  # may be broken beside another protobuf

    return event_pb2.SessionLog(status=event_pb2.SessionLog.START)


def _summary(scalars: Mapping[str, float]) -> Any:
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
