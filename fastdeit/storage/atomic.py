"""Files that are whole or not there, whatever ends the process that writes them, and whatever the disk does."""

import contextlib
import os
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

HELD = 10_000
"""Records that wait in memory while the disk refuses."""


def write_whole(path: Path, text: str) -> None:
    """Writes a text file as `whole_file` does."""
    with whole_file(path) as file:
        file.write(text.encode())


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A new file that takes its name at the end: a reader finds the old one or the new one, also after a loss of power.

    Raises OSError; then nothing of the new one stays.
    """
    work = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with work.open("xb") as file:  # never through a link that somebody has put there
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(work, path)
    except BaseException:
        work.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_small(path: Path, limit: int) -> str:
    """A text file of at most `limit` bytes. Raises ValueError for a longer one and for what is no UTF-8, OSError."""
    with path.open("rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"{path}: got more than {limit:,} bytes, which is the limit")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is no text: {error}") from None


class GrowingFile:
    """A file that records are appended to, each whole or not at all.

    What the disk refuses waits in memory, the newest `HELD` records, and is written with the next that it takes. tell: hears
    when that begins and ends, and of what was lost. Raises OSError if the file cannot be made.
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
        if len(self._waiting) > HELD:
            self._waiting.popleft()
            self._lost += 1
        try:
            self._write()
        except OSError as error:
            if not self._refused:
                self._tell(
                    f"{self._path} is not written: {error}; the run goes on, the newest {HELD:,} records wait in memory"
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
