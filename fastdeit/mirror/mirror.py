"""The mirror of a run: its working copy restored from a URL at the start, then uploaded while it
trains, by a thread of rank 0 that no step waits for."""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from fastdeit.data.remote.source import FetchError, FetchStopped, Transient
from fastdeit.storage.run_folder import RunFolder
from fastdeit.storage.urls import is_url

if TYPE_CHECKING:
    from fastdeit.mirror.lease import Lease
    from fastdeit.mirror.store import RunStore
    from fastdeit.mirror.upload import Uploader

INTERVAL_S = 60.0
"""Seconds between two uploads of logs; a checkpoint is uploaded at once."""
SHARE = 20
"""The shortest time from the start of an upload to that of the next one, in multiples of the time
that the first one took."""
RETRY_S = (5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 300.0)
"""Seconds from the start of a failed upload to the next attempt, after one failure, two, and so
on."""
_POLL_S = 1.0
_log = logging.getLogger(__name__)


class RunMirror:
    """The mirror of the run that --output-dir names; for a local folder it does nothing. Only one
    rank opens it; on the others, `finish` and `close` do nothing."""

    def __init__(self, output_dir: str) -> None:
        self.folder = RunFolder.of(output_dir)
        self._url = output_dir if is_url(output_dir) else ""
        self._lease: Lease | None = None
        self._thread: _UploadThread | None = None

    def open(self, say: Callable[[str], None], proceed: Callable[[], bool]) -> None:
        """Take the lease of the URL, restore the working copy, and start to upload.

        say: called with lines for the user. proceed: asked often; once it returns False, nothing is
        opened or uploaded. Raises ValueError for a URL that cannot be used, and OSError.
        """
        # fsspec and its stores import slowly
        from fastdeit.mirror.lease import Lease
        from fastdeit.mirror.restore import restore
        from fastdeit.mirror.store import RunStore
        from fastdeit.mirror.upload import Uploader

        with _name_faults():
            store = RunStore(self._url, proceed)
            self._lease = Lease(store, self._stop_run)
            try:
                self._lease.acquire(say)
                listed = _list_files(store)
                restore(self.folder, store, listed, say)
            except FetchStopped:
                return
        self._thread = _UploadThread(Uploader(self.folder, store, listed), self._lease)
        self._thread.start()

    def describe(self) -> list[str]:
        """Return where the run is, as a line for the user; none for a local folder."""
        return [f"the run is in {self.folder}, and uploaded to {self._url}"] if self._url else []

    def _stop_run(self) -> None:
        """Stop this run, whose URL another one has taken over; its working copy remains."""
        text = "%s is in use by another run; this one stops, and %s has what it saved"
        _log.warning(text, self._url, self.folder)
        with contextlib.suppress(OSError):
            self.folder.stop_request.touch()

    def finish(self, limit_s: float, beat: Callable[[], None] = lambda: None) -> None:
        """Upload what has changed, for at most `limit_s`; a warning if that was not enough. beat:
        called while it waits."""
        if self._thread is None:
            return
        fault = self._thread.finish(limit_s, beat)
        self._thread = None
        if fault:
            _log.warning(
                "%s does not have all of the run (%s); the same command on this machine uploads %s",
                self._url,
                fault,
                self.folder,
            )

    def close(self) -> None:
        """Release the lease; what was not uploaded by `finish` is not uploaded."""
        if self._thread is not None:
            self._thread.finish(0.0)
            self._thread = None
        if self._lease is not None:
            self._lease.release()
            self._lease = None

    def __enter__(self) -> "RunMirror":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _list_files(store: "RunStore") -> dict[str, int]:
    """Return the files of a store. The lease must be one of them: with a list that lacks what was
    just written, a run would begin again and replace the files at the URL. Raises FetchError."""
    from fastdeit.mirror.lease import NAME

    listed = store.retry(store.list_files)
    if NAME not in listed:
        raise FetchError(f"{store.url}: its list of files lacks {NAME!r}, which was just written")
    return listed


@contextlib.contextmanager
def _name_faults() -> Iterator[None]:
    """Raise ValueError that names the flag for what a store refuses."""
    try:
        yield
    except (FetchError, Transient) as error:
        raise ValueError(f"--output-dir: {error}") from None


class _UploadThread(threading.Thread):
    """A thread that uploads until it is asked to finish. A failed upload is repeated after a pause,
    and its fault is reported once."""

    def __init__(self, uploader: "Uploader", lease: "Lease") -> None:
        super().__init__(daemon=True, name="fastdeit-mirror")
        self._uploader = uploader
        self._lease = lease
        self._ending = threading.Event()
        self._ended = threading.Event()
        self._fault = ""
        self._failures = 0

    def run(self) -> None:
        while True:
            is_last = self._ending.is_set()
            start = time.monotonic()
            pause = self._upload()
            if pause is None or (is_last and not self._fault):
                break
            self._wait(start + pause)
        self._ended.set()

    def _upload(self) -> float | None:
        """Upload once; return the seconds from its start to the next time, None if there is
        none."""
        start = time.monotonic()
        try:
            if not self._lease.is_held():
                self._fault = "another run uses it"
                return None
            self._uploader.run()
        except Exception as error:  # no fault of an upload may end the run
            return self._note(f"{type(error).__name__}: {error}")
        if self._fault:
            _log.warning("uploads work again")
        self._fault = ""
        self._failures = 0
        return max(INTERVAL_S, SHARE * (time.monotonic() - start))

    def _note(self, fault: str) -> float:
        if not self._fault:
            _log.warning("an upload failed, and is tried again: %s", fault)
        self._fault = fault
        pause = RETRY_S[min(self._failures, len(RETRY_S) - 1)]
        self._failures += 1
        return pause

    def _wait(self, until: float) -> None:
        """Wait for the next upload: a time, a new checkpoint, or the end of the run."""
        while time.monotonic() < until:
            if self._ending.wait(_POLL_S):
                if self._fault:
                    time.sleep(_POLL_S)  # the store refuses, and the run is at its end
                return
            if not self._fault and self._uploader.has_new_checkpoint():
                return

    def finish(self, limit_s: float, beat: Callable[[], None] = lambda: None) -> str:
        """Have everything uploaded within `limit_s`; return the fault if it was not."""
        self._ending.set()
        end = time.monotonic() + limit_s
        while not self._ended.wait(min(_POLL_S, max(0.0, end - time.monotonic()))):
            beat()
            if time.monotonic() >= end:
                return self._fault or f"stopped after {limit_s:.0f} s"
        return self._fault
