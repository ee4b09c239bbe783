"""One live run per folder: rank 0 holds an exclusive lock on the file `lock`, which names it.

The system releases the lock of a process that dies, so a requeued job gets its folder at once, on
any host. A file system without locks leaves only the text: then a holder on this host counts while
it lives, one on another host until the file is removed.
"""

import contextlib
import errno
import fcntl
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from fastdeit.storage.atomic import open_no_link
from fastdeit.storage.jsonl import format_line, parse_record
from fastdeit.storage.run_folder import RunFolder

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL}


@dataclass(frozen=True)
class _Holder:
    """The process that holds a lock; started: its start, in seconds since 1970."""

    host: str
    pid: int
    boot: str
    started: float


class RunLock:
    """The lock of a run folder: held from `acquire` to the end of the `with` block."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder.path
        self._path = folder.lock
        self._stop_request = folder.stop_request
        self._descriptor: int | None = None
        self._created: list[Path] = []

    def acquire(self) -> None:
        """Take the lock; create the folder if necessary. Raises ValueError naming the process that
        holds it."""
        folders = (self._folder, *self._folder.parents)
        self._created = [folder for folder in folders if not folder.exists()]
        self._folder.mkdir(parents=True, exist_ok=True)
        while self._descriptor is None:
            self._descriptor = self._try()
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, format_line(_this_process()).encode(), 0)

    def _try(self) -> int | None:
        """Return a locked descriptor; None if the file was removed after it was opened."""
        descriptor = open_no_link(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = _read_holder(descriptor)
            if error.errno not in _NO_LOCKS or _may_be_alive(holder):
                os.close(descriptor)
                raise ValueError(self._refusal(holder)) from None
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), self._path.stat()):
                return descriptor
        os.close(descriptor)
        return None

    def _refusal(self, holder: _Holder | None) -> str:
        who = "another process"
        advice = f"stop it with `touch {self._stop_request}`"
        if holder is not None:
            since = time.strftime("%F %T", time.localtime(holder.started))
            who = f"process {holder.pid} on {holder.host} since {since}"
            if holder.host != socket.gethostname():
                advice += f", or remove {self._path} if it is dead"
        return f"--output-dir: {self._folder} is in use by {who}; {advice}, or name another folder"

    def release(self) -> None:
        """Release the lock; remove a folder that `acquire` created if it is empty."""
        if self._descriptor is None:
            return
        self._path.unlink(missing_ok=True)
        os.close(self._descriptor)
        self._descriptor = None
        for folder in self._created:
            with contextlib.suppress(OSError):
                folder.rmdir()

    def __enter__(self) -> "RunLock":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def _this_process() -> _Holder:
    started = psutil.Process().create_time()
    return _Holder(socket.gethostname(), os.getpid(), _boot_id(), started)


def _read_holder(descriptor: int) -> _Holder | None:
    """Return what the holder wrote; None if it has not yet."""
    try:
        holder = parse_record(os.pread(descriptor, 4096, 0), _Holder)
        time.localtime(holder.started)  # which takes no moment in millions of years
    except (ValueError, OverflowError):
        return None
    return holder


def _may_be_alive(holder: _Holder | None) -> bool:
    if holder is None:
        return False
    if holder.host != socket.gethostname():
        return True
    with contextlib.suppress(psutil.NoSuchProcess, ValueError, OverflowError):
        started = psutil.Process(holder.pid).create_time()
        # a process's start time moves a little when the clock is set
        return holder.boot == _boot_id() and abs(started - holder.started) < 2
    return False


def _boot_id() -> str:
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""
