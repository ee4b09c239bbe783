"""One live run per URL: an object `lock`, which its holder renews.

A store releases nothing when a process dies. So whoever finds the object watches it: a holder that
lives changes it every few seconds; one that does not for `LEASE_S` is dead. No clocks of two
machines are compared.
"""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable

from fastdeit.data.remote.source import FetchError, Transient
from fastdeit.mirror.store import RunStore
from fastdeit.storage.json_values import load_json

NAME = "lock"
"""The name of the object."""
LEASE_S = 60.0
"""Seconds without a renewal after which a holder counts as dead."""
RENEW_S = 10.0
"""Seconds between two renewals."""
_POLL_S = 2.0
_RELEASE_S = 10.0


class Lease:
    """The lease of a run's URL, renewed by a thread from `acquire` to `release`.

    lost: called once, in that thread, if another run has taken it over.
    """

    def __init__(self, store: RunStore, lost: Callable[[], None]) -> None:
        self._store = store
        self._lost = lost
        self._id = uuid.uuid4().hex
        self._count = 0
        self._ended = threading.Event()
        # a folder (file://) shows a file that is being written as empty
        self._access = threading.Lock()
        self._thread = threading.Thread(
            target=self._renew, daemon=True, name="fastdeit-mirror-lease"
        )

    def acquire(self, say: Callable[[str], None]) -> None:
        """Take the lease; wait for `LEASE_S` if another process may still hold it.

        say: called with a line before the wait. Raises ValueError naming the process that holds it,
        and FetchStopped.
        """
        self._take(say)
        self._thread.start()

    def _take(self, say: Callable[[str], None]) -> None:
        if self._store.retry(lambda: self._store.create(NAME, self._describe())):
            return
        seen = self._read()
        holder = _name_holder(seen)
        say(f"{self._store.url} was in use by {holder}; waiting {LEASE_S:.0f} s for a sign of it")
        end = time.monotonic() + LEASE_S
        while time.monotonic() < end:
            self._store.require_proceed()
            time.sleep(_POLL_S)
            if self._read() != seen:
                self._take_released(holder)
                return
        self._store.retry(lambda: self._store.write(NAME, self._describe()))
        time.sleep(_POLL_S)
        self._require_own(holder)

    def _take_released(self, holder: str) -> None:
        """Take a lease that has changed, which is free only if its object is gone."""
        if self._read() is not None or not self._store.create(NAME, self._describe()):
            self._refuse(holder)

    def _require_own(self, holder: str) -> None:
        if not self._is_own(self._read()):
            self._refuse(holder)

    def _refuse(self, holder: str) -> None:
        raise ValueError(
            f"--output-dir: {self._store.url} is in use by {holder}; stop that run, or name another"
        )

    def is_held(self) -> bool:
        """Return False if another run has taken the lease over. Raises FetchError, Transient."""
        with self._access:
            return self._is_own(self._store.read(NAME))

    def release(self) -> None:
        """Remove the lease, if it is held; if the store does not answer, it remains, and the next
        run waits."""
        self._ended.set()
        if not self._thread.is_alive():
            return
        self._thread.join(_RELEASE_S)  # a store may hang
        if self._thread.is_alive():
            return
        with contextlib.suppress(FetchError, Transient):
            if self.is_held():
                self._store.remove([NAME])

    def _renew(self) -> None:
        while not self._ended.wait(RENEW_S):
            # uploads report a store that does not answer
            with contextlib.suppress(FetchError, Transient):
                if not self.is_held():
                    self._lost()
                    return
                with self._access:
                    self._store.write(NAME, self._describe())

    def _read(self) -> bytes | None:
        return self._store.retry(lambda: self._store.read(NAME))

    def _describe(self) -> bytes:
        self._count += 1
        holder = {"host": socket.gethostname(), "pid": os.getpid(), "id": self._id}
        return json.dumps(holder | {"renewals": self._count}).encode()

    def _is_own(self, data: bytes | None) -> bool:
        return data is not None and self._id.encode() in data


def _name_holder(data: bytes | None) -> str:
    try:
        holder = load_json(data or b"")
        return f"process {int(holder['pid'])} on {str(holder['host'])[:64]!r}"
    except (ValueError, TypeError, KeyError):
        return "another process"
