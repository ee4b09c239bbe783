"""The origin of the files in a folder, one line for each fetched file; and the lock of a fetch."""

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastdeit.data.remote.addresses import OWN
from fastdeit.data.remote.source import FetchError, FetchStopped, RemoteFile
from fastdeit.storage.atomic import atomic_write_text, open_no_link
from fastdeit.storage.json_values import read_json_file
from fastdeit.storage.jsonl import (
    AppendOnlyFile,
    format_line,
    read_json_lines,
    replace_lines,
    restore_names,
)

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL}
_POLL_S = 0.5


@dataclass(frozen=True, slots=True)
class Entry:
    """A file that was fetched: its facts at the source, and the local file's time of modification
    in ns."""

    name: str
    address: str
    size: int
    version: str
    checksum: str
    mtime_ns: int

    @property
    def file(self) -> RemoteFile:
        return RemoteFile(self.name, self.address, self.size, self.version, self.checksum)

    def is_at(self, path: Path) -> bool:
        """Return True if the local file has not changed since it was fetched."""
        with contextlib.suppress(OSError):
            facts = path.stat()
            return (facts.st_size, facts.st_mtime_ns) == (self.size, self.mtime_ns)
        return False


_FIELDS = {field.name: int if field.type is int else str for field in dataclasses.fields(Entry)}


class Journal:
    """The file DIR/.fastdeit/fetch.jsonl. Attributes: folder, DIR; entries, by name."""

    def __init__(self, folder: Path, warn: Callable[[str], None]) -> None:
        self.folder = folder
        self._path = folder / OWN / "fetch.jsonl"
        self._warn = warn
        self._lock = threading.Lock()
        self._file: AppendOnlyFile | None = None
        records = [entry for entry in map(_parse, read_json_lines(self._path)) if entry]
        self.entries = {entry.name: entry for entry in records}
        self._has_more = len(records) > len(self.entries)

    def open(self) -> None:
        """Open the file to add entries; first repair an incomplete line, and drop older entries of
        the same names."""
        if self._path.exists() and (self._has_more or not _ends_line(self._path)):
            replace_lines(self._path, self.entries.values())
        self._file = AppendOnlyFile(self._path, self._warn)

    def add(self, file: RemoteFile, local: Path) -> None:
        """Record that `local`, which may not have its final name yet, is this file of a source."""
        facts = local.stat()
        entry = Entry(
            file.name, file.address, file.size, file.version, file.checksum, facts.st_mtime_ns
        )
        assert self._file is not None
        with self._lock:
            self.entries[file.name] = entry
            self._file.append(format_line(entry).encode())

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def forget(self, names: Iterable[str]) -> None:
        """Remove the entries of files that were removed; call it after `close`. Raises OSError."""
        for name in names:
            del self.entries[name]
        replace_lines(self._path, self.entries.values())


def _parse(line: dict[str, Any]) -> Entry | None:
    """Return the entry in a line; None for another line. A million lines are read in seconds."""
    values = [restore_names(line.get(name)) for name in _FIELDS]
    if [type(value) for value in values] != list(_FIELDS.values()):
        return None
    return Entry(*values)


def _ends_line(path: Path) -> bool:
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        return size == 0 or file.read() == b"\n"


def mark_complete(folder: Path, url: str, files: int, size: int) -> None:
    """Record that a folder has all files of a URL. Raises OSError."""
    facts = {"files": files, "bytes": size, "time": time.strftime("%FT%TZ", time.gmtime())}
    path = _completed(folder)
    atomic_write_text(path, json.dumps(_read_completed(path) | {url: facts}, indent=1) + "\n")


def mark_incomplete(folder: Path, url: str) -> None:
    """Record that files of a URL are missing again. Raises OSError."""
    path = _completed(folder)
    known = _read_completed(path)
    if known.pop(url, None):
        atomic_write_text(path, json.dumps(known, indent=1) + "\n")


def is_complete(folder: Path, url: str) -> bool:
    """Return True if a folder had all files of a URL when it was last fetched."""
    return url in _read_completed(_completed(folder))


def is_whole(folder: Path, url: str) -> bool:
    """Return True if a folder had all files of a URL, and none has changed or is missing."""
    if not is_complete(folder, url):
        return False
    entries = Journal(folder, lambda _: None).entries.values()
    return all(entry.is_at(folder / entry.name) for entry in entries)


def _completed(folder: Path) -> Path:
    return folder / OWN / "fetched.json"


def _read_completed(path: Path) -> dict[str, object]:
    try:
        known = read_json_file(path)
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


@contextlib.contextmanager
def lock_folder(
    folder: Path, note: Callable[[str], None], proceed: Callable[[], bool]
) -> Iterator[None]:
    """Allow one process at a time to fetch into a folder; wait for another process, and name it.
    Remove a folder that was created here if nothing is written in it.

    proceed: called during the wait; False ends it. Raises FetchStopped, FetchError.
    """
    path = folder / OWN / "fetch.lock"
    is_new = not os.path.exists(folder)
    descriptor = _open_lock(path, folder)
    try:
        _wait_for_lock(descriptor, folder, note, proceed)
        while not _is_at(descriptor, path):  # the process with the lock has removed the folder
            before, descriptor = descriptor, _open_lock(path, folder)
            os.close(before)
            _wait_for_lock(descriptor, folder, note, proceed)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        try:
            yield
        finally:
            if is_new:
                _remove_empty(folder, path)
    finally:
        os.close(descriptor)


def _open_lock(path: Path, folder: Path) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return open_no_link(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise FetchError(f"{folder}: cannot be written: {error.strerror}") from None


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


def _remove_empty(folder: Path, lock: Path) -> None:
    """Remove a folder that holds only the lock, which this process has."""
    with contextlib.suppress(OSError):
        if os.listdir(folder) == [OWN] and os.listdir(lock.parent) == [lock.name]:
            lock.unlink()
            lock.parent.rmdir()
            folder.rmdir()


def _wait_for_lock(
    descriptor: int, folder: Path, note: Callable[[str], None], proceed: Callable[[], bool]
) -> None:
    has_noted = False
    while not _try_lock(descriptor):
        if not has_noted:
            holder = os.pread(descriptor, 200, 0).decode(errors="replace") or "another process"
            note(f"{folder}: {holder} fetches into it; waiting for its end")
        has_noted = True
        if not proceed():
            raise FetchStopped(f"{folder}: stopped while another process fetches into it")
        time.sleep(_POLL_S)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in _NO_LOCKS
    return True
