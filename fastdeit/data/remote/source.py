"""The interface of a source of files at a URL, and the errors of reading from one."""

import dataclasses
import errno
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

NO_ROOM = {errno.ENOSPC, errno.EDQUOT}
"""Numbers of the errors of a disk that is full."""


class FetchError(ValueError):
    """A file that cannot be fetched; its message is for the user."""


class Unreachable(FetchError):
    """A source that did not answer, or only with errors that may pass."""


class FetchStopped(FetchError):
    """A fetch that was asked to stop; the next one continues it."""


class Transient(Exception):
    """A fault that may pass. Attributes: after_s, how long the source asks to wait, or None."""

    def __init__(self, text: str, after_s: float | None = None) -> None:
        super().__init__(text)
        self.after_s = after_s


class Changed(Exception):
    """The source has another file than the one that was being fetched."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file at a source."""

    name: str
    """Below the folder that it is fetched to, with slashes."""
    address: str
    """Where it is, without credentials."""
    size: int
    """Bytes; -1: not known yet."""
    version: str = ""
    """Changes with the content: an ETag or a time of modification; "" if there is neither."""
    checksum: str = ""
    """Of the content: sha256:HEX, md5:HEX, or git:HEX (git's id of a blob); "" if it is unknown."""
    mtime_ns: int = 0
    """Time of modification that the copy gets; 0: that of its arrival."""

    def holds_same(self, other: "RemoteFile") -> bool:
        """Return True if nothing shows that the content of two files differs."""
        if self.size != other.size:
            return False
        if self.checksum and other.checksum:
            return self.checksum == other.checksum
        return self.version == other.version

    def replace(self, **fields: int | str) -> "RemoteFile":
        return dataclasses.replace(self, **fields)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Answer:
    """A part of a file, as it arrives."""

    start: int
    """The offset of its first byte; 0 if the source ignores ranges."""
    end: int
    """The offset behind its last byte."""
    size: int | None
    """Bytes of the whole file, if the source says so."""
    version: str
    chunks: Iterator[bytes]


class Source(Protocol):
    """Files at a URL. Methods raise FetchError, Transient, Changed."""

    def list_files(self, patterns: Iterable[str]) -> list[RemoteFile]:
        """Return the files of the URL; patterns: names in it, where it is a folder that cannot be
        listed."""

    def describe(self, file: RemoteFile) -> RemoteFile:
        """Return the file as it is now."""

    def open(self, file: RemoteFile, start: int, end: int) -> AbstractContextManager[Answer]:
        """Begin to read the bytes from `start` to before `end`."""

    def has_checksum(self, file: RemoteFile) -> bool:
        """Return False if what looks like a checksum of the file may be something else."""

    def close(self) -> None: ...
