"""The files of a run at a URL, in an object store that fsspec can write to."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from fastdeit.data.remote.retries import require_proceed, retry
from fastdeit.data.remote.source import NO_ROOM, FetchError, Transient
from fastdeit.data.remote.sources.store import open_store, translate_errors
from fastdeit.storage.urls import hide_credentials

Result = TypeVar("Result")


class RunStore:
    """The files below a URL, by name relative to it.

    An object of an object store is whole or absent: it gets its name when all of it has arrived; a
    file of a folder (file://) is not. Methods raise FetchError for what cannot work, Transient for
    a fault that may pass. proceed: asked by `retry`, `require_proceed` and `download`, which raise
    FetchStopped where it returns False. Attributes: url, without credentials.
    """

    def __init__(self, url: str, proceed: Callable[[], bool] = lambda: True) -> None:
        self.url = hide_credentials(url).rstrip("/")
        self._proceed = proceed
        self._system: Any
        self._system, self._path = open_store(url.rstrip("/"))
        if hasattr(self._system, "auto_mkdir"):  # a file system with real folders
            self._system.auto_mkdir = True

    def _place(self, name: str) -> str:
        return f"{self._path}/{name}"

    def require_proceed(self) -> None:
        """Raise FetchStopped if this process is asked to stop."""
        require_proceed(self._proceed, self.url)

    def retry(self, action: Callable[[], Result]) -> Result:
        """Return the result of an action on this store, tried again after faults that may pass.

        Raises Unreachable after the last attempt, and FetchStopped.
        """
        return retry(action, self.url, self._proceed)

    def list_files(self) -> dict[str, int]:
        """Return the size in bytes of each file by its name; none for a run that does not exist."""
        with translate_errors(self.url):
            self._system.invalidate_cache()
            try:
                found = self._system.find(self._path, detail=True)
            except FileNotFoundError:
                return {}
        start = len(self._path) + 1
        return {path[start:]: int(facts["size"] or 0) for path, facts in found.items()}

    def read(self, name: str) -> bytes | None:
        """Return the content of a small file; None if it does not exist."""
        with translate_errors(f"{self.url}/{name}"):
            try:
                return bytes(self._system.cat_file(self._place(name)))
            except FileNotFoundError:
                return None

    def write(self, name: str, data: bytes) -> None:
        """Write a file."""
        with translate_errors(f"{self.url}/{name}"):
            self._system.pipe_file(self._place(name), data)

    def create(self, name: str, data: bytes) -> bool:
        """Write a file that does not exist; return False if it does. Two that do so at once: one
        of them gets False at a store that has conditional writes, as S3; elsewhere both may get
        True."""
        if self.read(name) is not None:
            return False
        address = f"{self.url}/{name}"
        try:
            with translate_errors(address):
                self._system.pipe_file(self._place(name), data, mode="create")
        except Transient:
            # a store has no common error for a file that exists
            if self.read(name) is None:
                raise
            return False
        return True

    def upload(self, file: Path, name: str) -> None:
        """Write a local file. Raises OSError if it cannot be read."""
        try:
            with translate_errors(f"{self.url}/{name}"):
                self._system.put_file(str(file), self._place(name))
        except FetchError:
            with file.open("rb"):
                pass  # a file that was removed meanwhile is not the store's fault
            raise

    def copy(self, source: str, name: str) -> None:
        """Write a file that the store has under another name, without sending it again."""
        with translate_errors(f"{self.url}/{name}"):
            self._system.cp_file(self._place(source), self._place(name))

    def download(self, name: str, file: Path) -> None:
        """Write a file of the store to a local one, which is whole or absent; tried again after
        faults that may pass."""
        address = f"{self.url}/{name}"
        work = file.with_name(f".{file.name}.tmp")
        file.parent.mkdir(parents=True, exist_ok=True)

        def fetch() -> None:
            with translate_errors(address), _name_full_disk(file):
                self._system.get_file(self._place(name), str(work))

        try:
            retry(fetch, address, self._proceed)
            work.replace(file)
        finally:
            work.unlink(missing_ok=True)

    def remove(self, names: Iterable[str]) -> None:
        """Remove files; one that does not exist is no fault."""
        for name in names:
            with translate_errors(f"{self.url}/{name}"):
                try:
                    self._system.rm_file(self._place(name))
                except FileNotFoundError:
                    continue


@contextlib.contextmanager
def _name_full_disk(file: Path) -> Iterator[None]:
    """Raise FetchError where a disk has no room for a file: no later attempt would find any."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_ROOM:
            raise FetchError(f"{file}: no room is left on the disk") from None
        raise
