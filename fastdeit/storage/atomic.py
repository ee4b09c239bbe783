"""Files that are whole or absent, however the process that writes them ends; and the safe opening
of a file that is written in place."""

import contextlib
import errno
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


def atomic_write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, as `atomic_open` does. Raises OSError."""
    with atomic_open(path) as file:
        file.write(text.encode())


@contextlib.contextmanager
def atomic_open(path: Path) -> Iterator[BinaryIO]:
    """Open a new file that gets the name `path` when the block ends.

    A reader finds the old file or the new one, also after a power failure. Raises OSError; after an
    error nothing of the new file remains.
    """
    work = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with work.open("xb") as file:  # "x": never through a link of that name
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(work, path)
    except BaseException:
        work.unlink(missing_ok=True)
        raise
    sync(path.parent)


def open_no_link(path: str | Path, flags: int, mode: int = 0o666) -> int:
    """Open a file as `os.open` does, but never through a link; the `opener` of `open`.

    A folder of unknown origin may have a link to any file of the user. A file that is written in
    place is opened with this function; a new file with `atomic_open`. Raises OSError.
    """
    try:
        return os.open(path, flags | os.O_NOFOLLOW, mode)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        reason = "is a link, through which nothing is written"
        raise OSError(errno.ELOOP, reason, os.fspath(path)) from None


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk. Raises OSError."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_bounded(path: Path, limit: int) -> str:
    """Return the text of a file of at most `limit` bytes.

    Raises ValueError for a longer file and for one that is not UTF-8, OSError for one that cannot
    be read.
    """
    with path.open("rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"{path}: must be at most {limit:,} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: must be text in UTF-8: {error}") from None
