"""Reader of a teacher cache: the teacher's output for every sample of the plan, a record of fixed
size for each.

A cache is a folder:

    manifest.json     format, sizes, versions, and the facts that decided images and outputs
    records.bin       the record of (epoch, ordinal) is at (epoch * samples + ordinal) * record
                      bytes; holes where nothing is recorded
    chunks.bin        for each chunk (4,096 ordinals of an epoch, fewer in a small data set) two
                      digests of 16 bytes: of its images, then of its records and the first digest;
                      zeros where nothing is recorded
    quarantine.jsonl  images that were found bad during recording (data/quarantine.py), if any

A chunk is written before its digests, both in their final place. A chunk that a crash cuts off has
no digest that fits, so a chunk is either recorded or not. Writers of different chunks never write
the same bytes. File names never come from the manifest. A reader checks a chunk when it first needs
it, and uses the same bytes that it checked.
"""

import functools
import hashlib
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from fastdeit.teacher_cache.format import (
    CacheError,
    decode,
    encode_labels,
    invalid_reason,
    read_manifest,
)

RECORDS = "records.bin"
CHUNKS = "chunks.bin"
BAD_IMAGES = "quarantine.jsonl"
DIGEST = 16
"""Bytes of a digest."""
_MAX_CHUNKS = 32
"""The largest number of checked chunks in memory."""
_MAX_WARNINGS = 10

_log = logging.getLogger(__name__)

Images = Callable[[int, np.ndarray], np.ndarray]
"""A function from an epoch and ordinals, int64 (B,), to the row of the index at each, int64 (B,):
`Plan.images`."""


class Cache:
    """A cache opened for reading. Records are memory-mapped, so opening takes no time."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        self._records = _map_file(self.folder / RECORDS)
        self._chunks = _read_file(self.folder / CHUNKS)
        self._checked: dict[tuple[int, int], np.ndarray | str] = {}
        """The records of the chunks that were checked, or their fault."""
        self._version = 0

    @property
    def record_bytes(self) -> int:
        """Return the bytes of one record."""
        return self.manifest.record.itemsize

    def coverage(self) -> np.ndarray:
        """Return which chunks are recorded, bool (epochs, chunks), by chunks.bin alone."""
        per_epoch = self.manifest.chunks * 2 * DIGEST
        padding = np.zeros(-len(self._chunks) % per_epoch, np.uint8)
        padded = np.concatenate((self._chunks, padding))
        return np.asarray(padded.reshape(-1, self.manifest.chunks, 2 * DIGEST).any(2))

    def find_fault(self, epoch: int, chunk: int, images: Images | None = None) -> str | None:
        """Return why the records of a chunk must not be used, or None if they may.

        images: if given, the chunk must have been recorded with the same images.
        """
        checked = self._check(epoch, chunk, images)
        return checked if isinstance(checked, str) else None

    def _check(self, epoch: int, chunk: int, images: Images | None) -> np.ndarray | str:
        """Return the records of a chunk, uint8 (n, record bytes), or why they must not be used."""
        where = f"{self.folder}: epoch {epoch}, ordinals from {chunk * self.manifest.chunk}: "
        entry = self.read_entry(epoch, chunk)
        records = self.read_chunk(epoch, chunk)
        if not entry:
            return where + "not recorded"
        if records is None:
            return where + f"{RECORDS} ends before them"
        image_hash = entry[:DIGEST]
        if make_entry(records.tobytes(), image_hash) != entry:
            return where + "damaged, another checksum"
        if images is not None:
            now = images(epoch, self.manifest.ordinals(chunk))
            if hash_images(now) != image_hash:
                return where + "recorded with other images: some were found bad then or now"
        if reason := invalid_reason(records.view(self.manifest.record), self.manifest):
            return where + reason
        return records.reshape(-1, self.record_bytes)

    def look_up(
        self, epoch: int, ordinals: np.ndarray, images: Images, version: int = 0
    ) -> tuple[np.ndarray, str | None]:
        """Return records, uint8 (B, record bytes), and None; or zeros and why one of the records
        must not be used.

        version: must change when `images` does (the number of bad images); chunks are then checked
        again.
        """
        records = np.zeros((len(ordinals), self.record_bytes), np.uint8)
        chunks, places = np.divmod(ordinals, self.manifest.chunk)
        for chunk in np.unique(chunks).tolist():
            checked = self._check_once(epoch, chunk, images, version)
            if isinstance(checked, str):
                return np.zeros_like(records), checked
            here = chunks == chunk
            records[here] = checked[places[here]]
        return records, None

    def _check_once(self, epoch: int, chunk: int, images: Images, version: int) -> np.ndarray | str:
        if self._version != version:
            self._checked = {}
            self._version = version
        if (epoch, chunk) not in self._checked:
            while len(self._checked) >= _MAX_CHUNKS:
                oldest = next(iter(self._checked))
                del self._checked[oldest]
            self._checked[epoch, chunk] = self._check(epoch, chunk, images)
        return self._checked[epoch, chunk]

    def read_entry(self, epoch: int, chunk: int) -> bytes:
        """Return both digests of a chunk; empty if it is not recorded."""
        start = (epoch * self.manifest.chunks + chunk) * 2 * DIGEST
        entry = self._chunks[start : start + 2 * DIGEST].tobytes()
        return entry if len(entry) == 2 * DIGEST and any(entry) else b""

    def read_chunk(self, epoch: int, chunk: int) -> np.ndarray | None:
        """Return a copy of the bytes of a chunk's records, uint8 (bytes,); None if the file ends
        before."""
        first = (epoch * self.manifest.samples + chunk * self.manifest.chunk) * self.record_bytes
        last = first + len(self.manifest.ordinals(chunk)) * self.record_bytes
        # reading beyond the end of a file that was cut after it was mapped would kill the process
        if last > len(self._records) or last > (self.folder / RECORDS).stat().st_size:
            return None
        return np.array(self._records[first:last])


class CachedTeacher:
    """The recorded teacher of a run: records for its micro-batches, and a rule for missing ones.

    cache: its manifest has been found to fit the run. miss: "error" raises CacheError, "live"
    leaves the micro-batch to the live teacher, "ground-truth" takes the label with the larger share
    (hard distillation only). images: `Plan.images`. bad_images: rows of the index that were bad
    during recording, with the fault; the run must exclude them too.
    """

    def __init__(
        self, cache: Cache, miss: str, images: Images, bad_images: dict[int, str] | None = None
    ) -> None:
        self.cache = cache
        self.miss = miss
        self.bad_images = bad_images or {}
        self.missed = 0
        """The number of samples without a record so far."""
        self._images = images
        self._warned: set[str] = set()

    def records(
        self, epoch: int, ordinals: np.ndarray, labels: np.ndarray, lam: np.ndarray, version: int
    ) -> np.ndarray | None:
        """Return the records of a micro-batch, uint8 (B, record bytes), or None if the live teacher
        must run.

        Row i is mixed with row i ^ 1. version: as in `Cache.look_up`.
        """
        records, fault = self.cache.look_up(epoch, ordinals, self._images, version)
        if fault is None:
            return records
        self._report(fault)
        self.missed += len(ordinals)
        if self.miss == "live":
            return None
        partners = labels.reshape(-1, 2)[:, ::-1].reshape(-1)
        decision = np.where(lam >= 0.5, labels, partners)
        instead = encode_labels(decision, self.cache.manifest)
        return instead.view(np.uint8).reshape(len(ordinals), -1)

    def decoder(self, hard: bool, tau: float = 1.0) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return a function from the records of a micro-batch on its device to the teacher's
        output (`decode`)."""
        return functools.partial(decode, manifest=self.cache.manifest, hard=hard, tau=tau)

    def describe(self) -> str:
        """Return one line for the log."""
        manifest = self.cache.manifest
        name = manifest.facts.get("teacher", {}).get("name")
        teacher = ", ".join(map(str, name)) if isinstance(name, list) else name
        epochs = int(self.cache.coverage().all(1).sum())
        records = f"{manifest.description}, {epochs} epochs, miss: {self.miss}"
        return f"{teacher} recorded in {self.cache.folder}: {records}"

    def _report(self, fault: str) -> None:
        """Raise CacheError or warn, as `miss` says; each fault once, and only the first few."""
        if self.miss == "error":
            raise CacheError(f"{fault}; use --cache-miss live or ground-truth to train without it")
        if fault in self._warned or len(self._warned) == _MAX_WARNINGS:
            return
        self._warned.add(fault)
        instead = {"live": "the live teacher", "ground-truth": "the label"}[self.miss]
        last = ""
        if len(self._warned) == _MAX_WARNINGS:
            last = "; no more warnings of this kind, metrics.jsonl counts unrecorded samples"
        _log.warning("%s: %s instead%s", fault, instead, last)


def _read_file(path: Path) -> np.ndarray:
    return np.fromfile(path, np.uint8) if path.is_file() else np.zeros(0, np.uint8)


def _map_file(path: Path) -> np.ndarray:
    """Map the file's bytes, which are read when they are used; none if it is empty or missing."""
    if not path.is_file() or not path.stat().st_size:
        return np.zeros(0, np.uint8)
    return np.memmap(path, np.uint8, "r")


def hash_images(rows: np.ndarray) -> bytes:
    """Return the digest of a chunk's images, `DIGEST` bytes; rows: of the index, int64 (n,)."""
    return hashlib.blake2b(rows.astype("<i8").tobytes(), digest_size=DIGEST).digest()


def make_entry(records: bytes, image_hash: bytes) -> bytes:
    """Return both digests of a chunk, 2 * `DIGEST` bytes, from its records and the digest of its
    images."""
    return image_hash + hashlib.blake2b(records + image_hash, digest_size=DIGEST).digest()
