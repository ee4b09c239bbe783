"""The code that DALI generates from a graph with conditionals, and imports from temporary files."""

import contextlib
import tempfile
from collections.abc import Iterator


@contextlib.contextmanager
def private_code() -> Iterator[None]:
    """Have temporary files in a folder that no other user can enter, and that is gone at the end;
    a decorator of what builds a graph.

    In a folder that all may write to, such as /tmp, Python would leave compiled copies, and another
    user could put others in their place. A process that is killed would leave the files themselves.
    """
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory(prefix="fastdeit-graph-") as folder:
        tempfile.tempdir = folder
        try:
            yield
        finally:
            tempfile.tempdir = before
