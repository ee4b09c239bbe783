"""A standard output that nobody reads any more."""

import contextlib
import os
from collections.abc import Iterator
from io import FileIO, TextIOWrapper
from typing import Any


@contextlib.contextmanager
def unread_stdout(write_through: bool) -> Iterator[None]:
    """Have stdout be a pipe whose other end is closed.

    write_through: each write fails at once, as with `python -u`; else the write fails that finds
    the buffer full, or the flush. No fixture can do it: pytest sets stdout again for each phase.
    """
    reader, writer = os.pipe()
    os.close(reader)
    file: Any = FileIO(writer, "w") if write_through else os.fdopen(writer, "wb")
    stream = TextIOWrapper(file, write_through=write_through)
    try:
        with contextlib.redirect_stdout(stream):
            yield
    finally:
        with contextlib.suppress(BrokenPipeError):
            stream.close()
