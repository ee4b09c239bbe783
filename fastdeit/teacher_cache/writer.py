"""Writing a cache of the teacher's answers (cache.py has the format): chunk by chunk, by many
processes, safe to stop."""

import errno
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np

from fastdeit.teacher_cache.format import (
    MANIFEST,
    CacheError,
    Manifest,
    differences,
    read_manifest,
    require,
)
from fastdeit.teacher_cache.reader import (
    BAD_IMAGES,
    CHUNKS,
    DIGEST,
    RECORDS,
    Cache,
    digest_of_images,
    entry_of,
)

LOCK = "lock"
_WORK = f"{MANIFEST}.tmp"
_OWN = {MANIFEST, RECORDS, CHUNKS, LOCK, BAD_IMAGES, _WORK}
_CREATING = 1 << 62  # a byte of the lock file that stands for no chunk


def create(folder: Path, manifest: Manifest) -> None:
    """Make the folder and its manifest, unless an equal one is there. Raises CacheError for another
    one, or no room for it.

    Many may do it at once, of different machines too; to be called before any `CacheWriter` of this
    process.
    """
    manifest.check(folder)
    try:
        if not (folder / MANIFEST).exists():
            stray = (
                sorted(path.name for path in folder.iterdir() if path.name not in _OWN)
                if folder.is_dir()
                else []
            )
            require(
                not stray,
                folder,
                f"holds other files ({', '.join(stray[:3])}) and no cache; name an empty or new folder",
            )
            folder.mkdir(parents=True, exist_ok=True)
            _write_manifest(folder, manifest)
    except OSError as error:
        raise CacheError(f"{folder}: cannot be written: {error.strerror}") from None
    then = read_manifest(folder)
    lines = differences(asdict(then), asdict(manifest) | {"versions": then.versions})
    require(not lines, folder, "was begun with other settings: " + "; ".join(lines))


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    """Unless another process is the first."""
    with _opened(folder / LOCK) as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX, 1, _CREATING)
        if (folder / MANIFEST).exists():
            return
        for name in (RECORDS, CHUNKS):
            (folder / name).touch()
        (folder / _WORK).write_text(json.dumps(asdict(manifest), indent=1), encoding="utf-8")
        os.replace(folder / _WORK, folder / MANIFEST)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    handle = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        yield handle
    finally:
        os.close(handle)


class CacheWriter:
    """Writes chunks into a cache's folder; many processes may, each its own chunks.

    Raises CacheError if the folder cannot be written, or the disk is full: what was recorded before
    stays.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.manifest = folder, read_manifest(folder)
        try:
            self._records, self._chunks, self._lock = (
                os.open(folder / name, os.O_RDWR | os.O_CREAT) for name in (RECORDS, CHUNKS, LOCK)
            )
        except OSError as error:
            raise CacheError(f"{folder}: cannot be written: {error.strerror}") from None

    def reserve(self, first: int, last: int) -> None:
        """Keep other recorders from the chunks first to last - 1, counted over all epochs; released
        when this process ends.

        Raises CacheError when one of them is another's.
        """
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB, last - first, first)
        except OSError as error:
            taken = error.errno in (errno.EACCES, errno.EAGAIN)
            problem = "another process is recording the same part; wait for it or stop it"
            raise CacheError(
                f"{self.folder}: {problem if taken else f'cannot be locked: {error.strerror}'}"
            ) from None

    def write(self, epoch: int, chunk: int, records: np.ndarray, images: np.ndarray) -> None:
        """Record one chunk: records as `encode` gives them, and the images, int64, that its samples
        were made of."""
        count = len(self.manifest.ordinals(chunk))
        assert records.dtype == self.manifest.record and len(records) == len(images) == count, (
            "a chunk is written whole"
        )
        self._put(
            epoch, chunk, records.tobytes(), entry_of(records.tobytes(), digest_of_images(images))
        )

    def copy(self, source: Cache, epoch: int, chunk: int) -> None:
        """Record a whole chunk of another cache with an equal manifest."""
        raw, entry = source.raw(epoch, chunk), source.entry(epoch, chunk)
        assert raw is not None and entry, "only what is recorded can be copied"
        self._put(epoch, chunk, raw.tobytes(), entry)

    def _put(self, epoch: int, chunk: int, records: bytes, entry: bytes) -> None:
        place = epoch * self.manifest.samples + chunk * self.manifest.chunk
        try:
            _write_at(self._records, records, place * self.manifest.record.itemsize)
            os.fdatasync(self._records)
            _write_at(self._chunks, entry, (epoch * self.manifest.chunks + chunk) * 2 * DIGEST)
        except OSError as error:
            problem = f"cannot be written: {error.strerror}; what is recorded stays, the same command goes on"
            raise CacheError(f"{self.folder}: {problem}") from None

    def close(self) -> None:
        """Everything on the disk."""
        for handle in (self._records, self._chunks):
            os.fsync(handle)
        for handle in (self._records, self._chunks, self._lock):
            os.close(handle)


def _write_at(handle: int, data: bytes, offset: int) -> None:
    while data:
        done = os.pwrite(handle, data, offset)
        data, offset = data[done:], offset + done
