"""The code that DALI generates from a graph with conditionals and imports from temporary files."""

import contextlib
import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from fastdeit.distributed.exits import at_hard_exit

_LOCK = threading.Lock()
_folders: dict[int, tempfile.TemporaryDirectory[str]] = {}
"""The private folder of each process, by its number: a forked child inherits its parent's, which
the parent removes when it ends."""


@contextlib.contextmanager
def private_code() -> Iterator[None]:
    """Write temporary files to a folder that no other user can enter and that is removed when the
    process ends; a decorator of what builds a graph, in any thread.

    In a folder that all may write to, such as /tmp, compiled copies would remain, and another user
    could replace them. A process that is killed would leave the files themselves.
    """
    with _LOCK:
        before = tempfile.tempdir
        tempfile.tempdir = _find_folder()
        try:
            yield
        finally:
            tempfile.tempdir = before


def _find_folder() -> str:
    """Return the folder of this process; create it if it is missing. It remains after a graph is
    built, as another thread may have written a file there meanwhile."""
    process = os.getpid()
    if process not in _folders or not Path(_folders[process].name).is_dir():
        _folders[process] = tempfile.TemporaryDirectory(prefix="fastdeit-graph-")
    return _folders[process].name


@at_hard_exit
def _remove_folder() -> None:
    folder = _folders.pop(os.getpid(), None)
    if folder:
        folder.cleanup()
