"""Compilation of PIL's arithmetic: numba functions whose arrays do not overlap, and the key of
their cache on disk.

Functions marked `jit` are compiled into a few entry points, which are stored on disk. To see
whether a stored entry is still valid, numba checks the entry's own file alone, so the entries take
`SOURCE_HASH`, which changes with any of the sources.
"""

import contextlib
import fcntl
import hashlib
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numba
from numba.core.ccallback import CFunc
from numba.core.compiler import Compiler
from numba.core.sigutils import normalize_signature

from fastdeit.plan.operations import OPERATIONS, Operation

SOURCES = sorted(Path(__file__).parent.rglob("*.py"))
"""Every file whose functions may be compiled."""


def source_hash(paths: Sequence[Path], operations: Sequence[Operation]) -> int:
    """Return a 60-bit hash of files and of the table of operations."""
    text = b"".join(path.read_bytes() for path in paths) + repr(operations).encode()
    return int(hashlib.sha256(text).hexdigest()[:15], 16)


SOURCE_HASH = source_hash(SOURCES, OPERATIONS)
"""The hash of everything that is compiled. An entry has it in its closure, which numba adds to the
cache's key."""


class _NoAlias(Compiler):
    """A compiler that declares to LLVM that the arrays passed to a function do not overlap, as C's
    `restrict` does: without this no gather is vectorised.

    numba 0.68 sets this flag for its own parallel loops and has no other interface for it; without
    the flag the code is slower, with the same results.
    """

    def define_pipelines(self) -> Any:
        if hasattr(self.state.flags, "noalias"):
            self.state.flags.noalias = True
        return super().define_pipelines()


# "numpy": divisions are not checked; neither fast-math nor contraction, which would change bits
jit = numba.njit(nogil=True, error_model="numpy", pipeline_class=_NoAlias, no_cpython_wrapper=True)
"""The decorator of functions that compiled code calls. An array that is written to must not overlap
another argument."""
inlined = numba.njit(nogil=True, error_model="numpy", forceinline=True, no_cpython_wrapper=True)
"""The decorator of functions of scalars, which are inlined."""


def cached_entry(function: Callable[..., Any]) -> Any:
    """Return an entry point from Python, which is compiled at its first call, and stored on disk if
    a folder for it can be written."""
    try:
        return numba.njit(function, cache=True, nogil=True, error_model="numpy")
    except RuntimeError:  # neither __pycache__ nor the user's cache folder
        logging.getLogger(__name__).warning(
            "no folder for numba's cache: %s is compiled in each process", function.__name__
        )
        return numba.njit(function, nogil=True, error_model="numpy")


_PATIENCE_S = 3.0  # of compilation, before a message explains the wait
_log = logging.getLogger(__name__)


class _NotStoredError(Exception):
    """The cache on disk does not have a function."""


class _Callback(CFunc):  # type: ignore[misc]
    """A C function that is loaded from disk, and compiled only if `compiles` is set."""

    compiles = False

    def _compile_uncached(self) -> Any:
        if not self.compiles:
            raise _NotStoredError
        message = "compiling the augmentation for this machine, once: half a minute"
        note = threading.Timer(_PATIENCE_S, _log.warning, [message])
        note.start()
        try:
            return super()._compile_uncached()  # type: ignore[misc]
        finally:
            note.cancel()


def make_callback(function: Callable[..., Any], signature: Any) -> CFunc:
    """Return a C function that does not need Python's lock, loaded from disk or compiled.

    Of several processes that need it at the same time, one compiles and stores it, and the others
    wait and load it. Where no folder can be written, each process compiles it.
    """
    callback = _Callback(function, normalize_signature(signature), {}, {"nopython": True})
    try:
        callback.enable_caching()
    except RuntimeError:  # no folder for the cache, as in cached_entry
        callback.compiles = True
    try:
        callback.compile()
    except _NotStoredError:
        callback.compiles = True
        with _one_at_a_time():
            callback.compile()
    return callback


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Allow one process of this machine at a time, if its file system has locks."""
    with open(__file__, "rb") as file:
        with contextlib.suppress(OSError):  # as on NFS
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@jit
def copy(line, out):
    """Copy one line into another. numba's own assignment of a slice takes seconds to compile, as it
    can raise an error with a message."""
    for i in range(len(out)):
        out[i] = line[i]
