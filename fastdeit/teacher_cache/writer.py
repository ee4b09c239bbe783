"""Writer of a teacher cache: chunk by chunk, by many processes, safe to stop (reader.py describes
the files)."""

import errno
import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np

from fastdeit.storage.atomic import open_no_link
from fastdeit.teacher_cache.format import (
    MANIFEST,
    CacheError,
    Manifest,
    list_differences,
    read_manifest,
    require,
)
from fastdeit.teacher_cache.reader import (
    BAD_IMAGES,
    CHUNKS,
    DIGEST,
    RECORDS,
    Cache,
    hash_images,
    make_entry,
)

LOCK = "lock"
_WORK = f"{MANIFEST}.tmp"
_OWN = {MANIFEST, RECORDS, CHUNKS, LOCK, BAD_IMAGES, _WORK}
_COPIED_AT_ONCE = 16
"""The number of chunks that are copied at once: 65,536 samples, 26 MB of 100 logits."""
_CREATING = 1 << 62
"""The byte of the lock file that is locked to create a cache; lower ones are chunks."""


def create_cache(folder: Path, manifest: Manifest) -> None:
    """Create the folder and its manifest, unless there is an equal one.

    Many processes may do it at once, on different machines too; call it before any `CacheWriter` of
    this process. Raises CacheError for a cache with another manifest, for a folder that holds other
    files, and if it cannot be written.
    """
    manifest.check(folder)
    try:
        if not (folder / MANIFEST).exists():
            _check_no_other_files(folder)
            folder.mkdir(parents=True, exist_ok=True)
            _write_manifest(folder, manifest)
    except OSError as error:
        raise CacheError(f"{folder}: cannot be written: {error.strerror}") from None
    then = read_manifest(folder)
    lines = list_differences(asdict(then), asdict(manifest) | {"versions": then.versions})
    require(not lines, folder, "was begun with other settings: " + "; ".join(lines))


def _check_no_other_files(folder: Path) -> None:
    if not folder.is_dir():
        return
    others = sorted(path.name for path in folder.iterdir() if path.name not in _OWN)
    shown = ", ".join(others[:3])
    require(not others, folder, f"must be a cache, empty or new (it holds other files: {shown})")


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest, unless another process was first."""
    with _opened(folder / LOCK) as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX, 1, _CREATING)
        if (folder / MANIFEST).exists():
            return
        for name in (RECORDS, CHUNKS):
            with _opened(folder / name):
                pass
        text = json.dumps(asdict(manifest), indent=1)
        with open(folder / _WORK, "w", encoding="utf-8", opener=open_no_link) as file:
            file.write(text)
        os.replace(folder / _WORK, folder / MANIFEST)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    handle = open_no_link(path, os.O_RDWR | os.O_CREAT)
    try:
        yield handle
    finally:
        os.close(handle)


class CacheWriter:
    """Writer of chunks into a cache; many processes may write, each its own chunks.

    Raises CacheError if the folder cannot be written, or the disk is full; what was recorded before
    is not lost.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = read_manifest(folder)
        mode = os.O_RDWR | os.O_CREAT
        try:
            self._records = open_no_link(folder / RECORDS, mode)
            self._chunks = open_no_link(folder / CHUNKS, mode)
            self._lock = open_no_link(folder / LOCK, mode)
        except OSError as error:
            raise CacheError(f"{folder}: cannot be written: {error.strerror}") from None

    def reserve(self, first: int, last: int) -> None:
        """Lock the chunks first to last - 1, counted over all epochs, until this process ends.

        Raises CacheError if another process has locked one of them.
        """
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB, last - first, first)
        except OSError as error:
            problem = f"cannot be locked: {error.strerror}"
            if error.errno in (errno.EACCES, errno.EAGAIN):
                problem = "another process is recording the same part; wait for it or stop it"
            raise CacheError(f"{self.folder}: {problem}") from None

    def write(self, epoch: int, chunk: int, records: np.ndarray, images: np.ndarray) -> None:
        """Write one chunk.

        records: (n,), made by `encode`. images: the rows of the index from which the samples were
        made, int64 (n,). Raises CacheError.
        """
        count = len(self.manifest.ordinals(chunk))
        assert records.dtype == self.manifest.record, "records come from `encode`"
        assert len(records) == len(images) == count, "a chunk is written whole"
        data = records.tobytes()
        self._put(epoch, [(chunk, data, make_entry(data, hash_images(images)))])

    def copy(self, source: Cache, epoch: int, chunks: Sequence[int]) -> None:
        """Copy whole chunks of an epoch from another cache with an equal manifest."""
        # in groups: the disk is waited for once in each group, and memory holds one group
        for first in range(0, len(chunks), _COPIED_AT_ONCE):
            group = chunks[first : first + _COPIED_AT_ONCE]
            self._put(epoch, [(chunk, *_read_whole(source, epoch, chunk)) for chunk in group])

    def _put(self, epoch: int, chunks: Sequence[tuple[int, bytes, bytes]]) -> None:
        """Write the records of chunks, and their digests once the records are on the disk.

        chunks: number, records and digests of each.
        """
        manifest = self.manifest
        try:
            for chunk, records, _ in chunks:
                place = epoch * manifest.samples + chunk * manifest.chunk
                _write_at(self._records, records, place * manifest.record.itemsize)
            os.fdatasync(self._records)
            for chunk, _, entry in chunks:
                _write_at(self._chunks, entry, (epoch * manifest.chunks + chunk) * 2 * DIGEST)
        except OSError as error:
            problem = f"cannot be written: {error.strerror}"
            advice = "what is recorded stays; run the same command to continue"
            raise CacheError(f"{self.folder}: {problem}; {advice}") from None

    def close(self) -> None:
        """Sync all files to the disk and close them."""
        for handle in (self._records, self._chunks):
            os.fsync(handle)
        for handle in (self._records, self._chunks, self._lock):
            os.close(handle)


def _read_whole(source: Cache, epoch: int, chunk: int) -> tuple[bytes, bytes]:
    """Return the records and the digests of a chunk."""
    records = source.read_chunk(epoch, chunk)
    entry = source.read_entry(epoch, chunk)
    assert records is not None and entry, "only what is recorded can be copied"
    return records.tobytes(), entry


def _write_at(handle: int, data: bytes, offset: int) -> None:
    while data:
        done = os.pwrite(handle, data, offset)
        data = data[done:]
        offset += done
