"""Files of JSON lines: appended to whole line by whole line, read though the last may be torn."""

import contextlib
import json
import os
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

MAX_PENDING = 10_000
"""Records that wait in memory while the disk refuses."""


class AppendOnlyFile:
    """A file that records are appended to, each whole or not at all.

    What the disk refuses waits in memory, the newest `MAX_PENDING` records, and is written with the
    next that it takes. tell: hears when that begins and ends, and of what was lost. Raises OSError
    if the file cannot be made.
    """

    def __init__(self, path: Path, tell: Callable[[str], None]) -> None:
        self._path, self._tell = path, tell
        self._file = path.open("ab", buffering=0)
        self._waiting: deque[bytes] = deque()
        self._torn: int | None = None
        """Where a record begins of which only a part was taken."""
        self._lost, self._refused = 0, False

    def append(self, record: bytes) -> None:
        self._waiting.append(record)
        if len(self._waiting) > MAX_PENDING:
            self._waiting.popleft()
            self._lost += 1
        try:
            self._write()
        except OSError as error:
            if not self._refused:
                self._tell(
                    f"{self._path} is not written: {error}; the run goes on, the newest {MAX_PENDING:,} records wait in memory"
                )
            self._refused = True
            return
        if self._refused:
            self._tell(f"{self._path} is written again{self._told_lost()}")
        self._lost, self._refused = 0, False

    def _write(self) -> None:
        while self._waiting:
            if self._torn is not None:
                self._file.truncate(self._torn)
            self._torn, rest = self._file.seek(0, os.SEEK_END), memoryview(self._waiting[0])
            while rest:
                rest = rest[self._file.write(rest) :]
            self._torn = None
            self._waiting.popleft()

    def _told_lost(self) -> str:
        return f"; {self._lost} of its records are lost" if self._lost else ""

    def close(self) -> None:
        """Tries once more to write what waits."""
        with contextlib.suppress(OSError):
            self._write()
        if self._waiting:
            self._lost += len(self._waiting)
            self._tell(f"{self._path} ends early{self._told_lost()}")
        with contextlib.suppress(OSError):
            self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; a last line cut short by a kill is left out."""
    lines = []
    for text in path.read_text().splitlines() if path.is_file() else []:
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines
