"""One live run in a folder: rank 0 holds an exclusive lock on `lock`, whose text tells who it is.

The system frees the lock of a process that dies, so a requeued job takes its folder over at once,
on any host. A file system without locks leaves only the text: there a holder on this host counts
while it lives, one on another host until the file is removed.
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import psutil

from fastdeit.storage.run_folder import RunFolder

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL}


class RunLock:
    """The lock of a run folder; free until `acquire`, freed at the end of the `with` block."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder.path
        self._path = folder.lock
        self._stop_request = folder.stop_request
        self._descriptor: int | None = None
        self._made: list[Path] = []

    def acquire(self) -> None:
        """Takes the lock, making the folder if need be. Raises ValueError naming the process that
        holds it."""
        self._made = [
            place for place in (self._folder, *self._folder.parents) if not place.exists()
        ]
        self._folder.mkdir(parents=True, exist_ok=True)
        while self._descriptor is None:
            self._descriptor = self._try()
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, json.dumps(_this_process()).encode(), 0)

    def _try(self) -> int | None:
        """A locked descriptor; None if the file went away between opening and locking it."""
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = _read(descriptor)
            if error.errno not in _NO_LOCKS or _may_live(holder):
                os.close(descriptor)
                raise ValueError(self._refusal(holder)) from None
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), self._path.stat()):
                return descriptor
        os.close(descriptor)
        return None

    def _refusal(self, holder: dict[str, Any]) -> str:
        since = time.strftime("%F %T", time.localtime(holder.get("started", 0)))
        who = (
            f"process {holder['pid']} on {holder['host']} since {since}"
            if holder
            else "another process"
        )
        cure = f"stop it with `touch {self._stop_request}`"
        if holder and holder["host"] != socket.gethostname():
            cure += f", or remove {self._path} if it is dead"
        return f"--output-dir: {self._folder} is in use by {who}; {cure}, or name another folder"

    def release(self) -> None:
        """Frees the lock; of a folder that `acquire` made, nothing stays if nothing was put in."""
        if self._descriptor is None:
            return
        self._path.unlink(missing_ok=True)
        os.close(self._descriptor)
        self._descriptor = None
        for place in self._made:
            with contextlib.suppress(OSError):
                place.rmdir()

    def __enter__(self) -> "RunLock":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def _this_process() -> dict[str, Any]:
    started = psutil.Process().create_time()
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "boot": _boot_id(),
        "started": started,
    }


def _read(descriptor: int) -> dict[str, Any]:
    """What the holder wrote; empty if it has not yet."""
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
        return holder if {"host", "pid", "boot", "started"} <= set(holder) else {}
    except (ValueError, TypeError):
        return {}


def _may_live(holder: dict[str, Any]) -> bool:
    if not holder:
        return False
    if holder["host"] != socket.gethostname():
        return True
    with contextlib.suppress(psutil.NoSuchProcess):
        same = (
            abs(psutil.Process(holder["pid"]).create_time() - holder["started"]) < 2
        )  # seconds: clocks are set
        return holder["boot"] == _boot_id() and same
    return False


def _boot_id() -> str:
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""
