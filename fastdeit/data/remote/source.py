"""The interface of a source of files at a URL, and the errors of reading from one."""

import dataclasses
import errno
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

NO_ROOM = {errno.ENOSPC, errno.EDQUOT}
"""The numbers of the errors of a disk that is full."""


class FetchError(ValueError):
    """The error of a file that cannot be fetched; its message is for the user."""


class Unreachable(FetchError):
    """The error of a source that gave no answer, or temporary errors alone."""


class FetchStopped(FetchError):
    """The end of a fetch that was asked to stop; the next fetch continues it."""


class Transient(Exception):
    """A temporary fault. Attributes: after_s, the seconds that the source asks to wait, or None."""

    def __init__(self, text: str, after_s: float | None = None) -> None:
        super().__init__(text)
        self.after_s = after_s


class Changed(Exception):
    """The error when the source replaces the file that is being fetched."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file at a source."""

    name: str
    """The path below the folder that it is fetched to, with slashes."""
    address: str
    """The URL or path of the file, without credentials."""
    size: int
    """The size in bytes; -1: not known yet."""
    version: str = ""
    """A text that changes with the content, an ETag or a time of modification; "" if there is
    none."""
    checksum: str = ""
    """The hash of the content: sha256:HEX, md5:HEX, or git:HEX (git's id of a blob); "" if it is
    unknown."""
    mtime_ns: int = 0
    """The time of modification of the copy; 0: the time of its arrival."""

    def holds_same(self, other: "RemoteFile") -> bool:
        """Return True if neither size, checksum nor version shows a difference of two files."""
        if self.size != other.size:
            return False
        if self.checksum and other.checksum:
            return self.checksum == other.checksum
        return self.version == other.version

    def replace(self, **fields: int | str) -> "RemoteFile":
        return dataclasses.replace(self, **fields)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Answer:
    """A byte range of a file, as it arrives."""

    start: int
    """The offset of its first byte; 0 if the source ignores ranges."""
    end: int
    """The offset after its last byte."""
    size: int | None
    """The size of the whole file in bytes, if the source gives it."""
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
        """Begin to read the bytes from `start` up to, and without, `end`."""

    def has_checksum(self, file: RemoteFile) -> bool:
        """Return False if the checksum of the file may be another value than a hash."""

    def close(self) -> None: ...
