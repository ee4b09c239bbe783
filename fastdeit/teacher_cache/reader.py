"""The recorded teacher: its answer to every sample of the plan, one record of fixed size each, in a
folder of a few files.

    manifest.json  what the records are: format, sizes, versions, and the facts that decided images and answers
    records.bin    the record of (epoch, ordinal) lies at (epoch * samples + ordinal) * record bytes; holes where there is none
    chunks.bin     32 bytes for each chunk (4,096 ordinals of an epoch, fewer in a small data set): the digest of the images
                   that its records were made of, then that of the records and the first; zeros where nothing is recorded
    quarantine.jsonl, if there is one: images that were found bad while it was recorded (data/quarantine.py)

A chunk is written before its digests, and both with plain writes to their final place; what a crash
cuts off has no digest that fits, so a chunk is either recorded or not. Writers of different chunks
never touch each other's bytes. A file's name is never taken from the manifest. A reader checks a
chunk when it is first needed, and uses the very bytes that it checked.
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
    invalid_reason,
    label_records,
    read_manifest,
)

DIGEST = 16  # bytes
RECORDS, CHUNKS, BAD_IMAGES = "records.bin", "chunks.bin", "quarantine.jsonl"
_HELD = 32  # checked chunks in memory
_SHOWN = 10  # faults that are told one by one

_log = logging.getLogger(__name__)

Images = Callable[[int, np.ndarray], np.ndarray]
"""(epoch, ordinals int64 (B,)) -> the row of the index at each, int64 (B,): `Plan.images`."""


class Cache:
    """A cache opened for reading; `CacheWriter` (cache_writer.py) writes. Records are
    memory-mapped: opening takes no time."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        self._records = _mapped(self.folder / RECORDS)
        self._chunks = _read(self.folder / CHUNKS)
        self._held: dict[tuple[int, int], np.ndarray | str] = {}
        self._version = 0

    @property
    def record_bytes(self) -> int:
        return self.manifest.record.itemsize

    def coverage(self) -> np.ndarray:
        """bool (epochs, chunks): what is recorded, as chunks.bin has it."""
        per_epoch = self.manifest.chunks * 2 * DIGEST
        padded = np.concatenate((self._chunks, np.zeros(-len(self._chunks) % per_epoch, np.uint8)))
        return np.asarray(padded.reshape(-1, self.manifest.chunks, 2 * DIGEST).any(2))

    def fault(self, epoch: int, chunk: int, images: Images | None = None) -> str | None:
        """Why the records of a chunk must not be used, or None. images: for the samples that are to
        be looked up."""
        checked = self._check(epoch, chunk, images)
        return checked if isinstance(checked, str) else None

    def _check(self, epoch: int, chunk: int, images: Images | None) -> np.ndarray | str:
        """The records of a chunk, uint8 (n, record bytes), or why they must not be used."""
        where = f"{self.folder}: epoch {epoch}, ordinals {chunk * self.manifest.chunk} on: "
        digests, records = self.entry(epoch, chunk), self.raw(epoch, chunk)
        if not digests:
            return where + "not recorded"
        if records is None:
            return where + f"{RECORDS} ends before them"
        if entry_of(records.tobytes(), digests[:DIGEST]) != digests:
            return where + "damaged, another checksum"
        if (
            images is not None
            and digest_of_images(images(epoch, self.manifest.ordinals(chunk))) != digests[:DIGEST]
        ):
            return where + "recorded with other images, as some were found to be bad then or now"
        if nonsense := invalid_reason(records.view(self.manifest.record), self.manifest):
            return where + nonsense
        return records.reshape(-1, self.record_bytes)

    def lookup(
        self, epoch: int, ordinals: np.ndarray, images: Images, version: int = 0
    ) -> tuple[np.ndarray, str | None]:
        """Records, uint8 (B, record bytes), and None, or why one of them must not be used.

        version: changes when `images` does (the number of images that were found bad): chunks are
        then checked again.
        """
        records = np.zeros((len(ordinals), self.record_bytes), np.uint8)
        chunks, places = np.divmod(ordinals, self.manifest.chunk)
        for chunk in np.unique(chunks).tolist():
            held = self._hold(epoch, chunk, images, version)
            if isinstance(held, str):
                return np.zeros_like(records), held
            here = chunks == chunk
            records[here] = held[places[here]]
        return records, None

    def _hold(self, epoch: int, chunk: int, images: Images, version: int) -> np.ndarray | str:
        if self._version != version:
            self._held, self._version = {}, version
        if (epoch, chunk) not in self._held:
            while len(self._held) >= _HELD:
                del self._held[next(iter(self._held))]
            self._held[epoch, chunk] = self._check(epoch, chunk, images)
        return self._held[epoch, chunk]

    def entry(self, epoch: int, chunk: int) -> bytes:
        """Both digests of a chunk; empty if it is not recorded."""
        start = (epoch * self.manifest.chunks + chunk) * 2 * DIGEST
        entry = self._chunks[start : start + 2 * DIGEST].tobytes()
        return entry if len(entry) == 2 * DIGEST and any(entry) else b""

    def raw(self, epoch: int, chunk: int) -> np.ndarray | None:
        """The bytes of a chunk's records, copied; None if the file ends before."""
        first = (epoch * self.manifest.samples + chunk * self.manifest.chunk) * self.record_bytes
        last = first + len(self.manifest.ordinals(chunk)) * self.record_bytes
        # a file that was cut since it was mapped would end the process with a signal
        if last > len(self._records) or last > (self.folder / RECORDS).stat().st_size:
            return None
        return np.array(self._records[first:last])


class CachedTeacher:
    """The recorded answers to a run's micro-batches, and what happens where there is none.

    cache: its manifest has been found to fit the run. miss: "error" raises CacheError, "live"
    leaves the micro-batch to the live teacher, "ground-truth" takes the label with the larger share
    (hard distillation only). images: `Plan.images`. bad_images: rows of the index that were bad
    when it was recorded, with the fault; the run has to leave them out as well.
    """

    def __init__(
        self, cache: Cache, miss: str, images: Images, bad_images: dict[int, str] | None = None
    ) -> None:
        self.cache, self.miss, self._images = cache, miss, images
        self.bad_images = bad_images or {}
        self._told: set[str] = set()
        self.missed = 0
        """Samples without a record so far."""

    def records(
        self, epoch: int, ordinals: np.ndarray, labels: np.ndarray, lam: np.ndarray, version: int
    ) -> np.ndarray | None:
        """uint8 (B, record bytes), or None: ask the live teacher. Pairs lie side by side; version:
        as `Cache.lookup`."""
        records, fault = self.cache.lookup(epoch, ordinals, self._images, version)
        if fault is None:
            return records
        self._tell(fault)
        self.missed += len(ordinals)
        if self.miss == "live":
            return None
        decision = np.where(lam >= 0.5, labels, labels.reshape(-1, 2)[:, ::-1].reshape(-1))
        return (
            label_records(decision, self.cache.manifest).view(np.uint8).reshape(len(ordinals), -1)
        )

    def decoder(self, hard: bool) -> Callable[[torch.Tensor], torch.Tensor]:
        """From the records of a micro-batch on its device to the teacher's answer, as `decode`."""
        return functools.partial(decode, manifest=self.cache.manifest, hard=hard)

    def describe(self) -> str:
        """One line for the log."""
        manifest, teacher = self.cache.manifest, self.cache.manifest.facts.get("teacher", {})
        whole = int(self.cache.coverage().all(1).sum())
        return f"{teacher.get('name')} recorded in {self.cache.folder}: {manifest.shown}, {whole} epochs, miss: {self.miss}"

    def _tell(self, fault: str) -> None:
        if self.miss == "error":
            raise CacheError(f"{fault}; --cache-miss live or ground-truth goes on without")
        if fault in self._told or len(self._told) == _SHOWN:
            return
        self._told.add(fault)
        instead = {"live": "the live teacher", "ground-truth": "the label"}[self.miss]
        last = "; more of these are not shown, metrics.jsonl counts the samples as unrecorded"
        _log.warning("%s: %s instead%s", fault, instead, last if len(self._told) == _SHOWN else "")


def _read(path: Path) -> np.ndarray:
    return np.fromfile(path, np.uint8) if path.is_file() else np.zeros(0, np.uint8)


def _mapped(path: Path) -> np.ndarray:
    """The file's bytes, read as they are needed; none if it is empty or not there yet."""
    return (
        np.memmap(path, np.uint8, "r")
        if path.is_file() and path.stat().st_size
        else np.zeros(0, np.uint8)
    )


def digest_of_images(rows: np.ndarray) -> bytes:
    return hashlib.blake2b(rows.astype("<i8").tobytes(), digest_size=DIGEST).digest()


def entry_of(records: bytes, images: bytes) -> bytes:
    """Both digests of a chunk, of its records and the digest of its images."""
    return images + hashlib.blake2b(records + images, digest_size=DIGEST).digest()
