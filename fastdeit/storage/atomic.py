"""Files that are whole or not there, whatever ends the process that writes them, and whatever the
disk does."""

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


def atomic_write_text(path: Path, text: str) -> None:
    """Writes a text file as `atomic_open` does."""
    with atomic_open(path) as file:
        file.write(text.encode())


@contextlib.contextmanager
def atomic_open(path: Path) -> Iterator[BinaryIO]:
    """A new file that takes its name at the end: a reader finds the old one or the new one, also
    after a loss of power.

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


def read_bounded(path: Path, limit: int) -> str:
    """A text file of at most `limit` bytes. Raises ValueError for a longer one and for what is no
    UTF-8, OSError."""
    with path.open("rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"{path}: got more than {limit:,} bytes, which is the limit")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is no text: {error}") from None
