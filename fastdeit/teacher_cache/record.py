"""Recording of the teacher: plan -> DALI -> mix -> teacher -> cache, chunk by chunk.

The chunks of a job are shared among its ranks. A rank computes its chunks alone, and no micro-batch
has samples of two chunks. So the records depend on the micro-batch size, but not on the number of
ranks or jobs, or on where recording was stopped.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fastdeit.data.loaders.batch import Batch
from fastdeit.data.loaders.train import OrdinalLoader
from fastdeit.kernels.mix import mix
from fastdeit.teacher_cache.format import Manifest, encode
from fastdeit.teacher_cache.reader import Cache, Images
from fastdeit.teacher_cache.writer import CacheWriter

Chunk = tuple[int, int]
"""An epoch, and the number of a chunk in it."""
Logits = Callable[[torch.Tensor], torch.Tensor]
"""A function from images (B, 3, H, W) to logits (B, K)."""


@dataclass(frozen=True)
class JobShard:
    """One of several jobs: its number, from 1 to `of`, and how many there are."""

    number: int = 1
    of: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.of:
            rule = "NUMBER/JOBS with NUMBER from 1 to JOBS"
            raise ValueError(f"--part must be {rule} (got {self.number}/{self.of})")

    def chunks(self, manifest: Manifest, epochs: Sequence[int]) -> list[Chunk]:
        """Return the job's share of the chunks, which follow one another."""
        every = [(epoch, chunk) for epoch in epochs for chunk in range(manifest.chunks)]
        first = len(every) * (self.number - 1) // self.of
        last = len(every) * self.number // self.of
        return every[first:last]


def find_missing(folder: Path, chunks: Sequence[Chunk], images: Images | None) -> list[Chunk]:
    """Return the chunks that are not recorded, are damaged, or, if images are given, were recorded
    with other images."""
    cache = Cache(folder)
    return [chunk for chunk in chunks if cache.find_fault(*chunk, images) is not None]


class ChunkBatches(Sequence[tuple[int, np.ndarray]]):
    """The micro-batches of chunks: the epoch and the ordinals, int64 (B,), of each, made on
    demand."""

    def __init__(self, manifest: Manifest, chunks: Sequence[Chunk], micro_batch: int) -> None:
        self._manifest = manifest
        self._chunks = chunks
        self.micro_batch = min(micro_batch, manifest.chunk)
        counts = [-(-len(manifest.ordinals(chunk)) // self.micro_batch) for _, chunk in chunks]
        self._starts = np.cumsum([0, *counts])

    def __len__(self) -> int:
        return int(self._starts[-1])

    # slices are never taken
    def __getitem__(self, number: int) -> tuple[int, np.ndarray]:  # type: ignore[override]
        place = int(np.searchsorted(self._starts, number, "right")) - 1
        epoch, chunk = self._chunks[place]
        first = (number - int(self._starts[place])) * self.micro_batch
        return epoch, self._manifest.ordinals(chunk)[first : first + self.micro_batch]


@torch.no_grad()
def compute_logits(
    batches: Iterator[Batch], teacher: Logits, dtype: torch.dtype
) -> Iterator[tuple[Batch, torch.Tensor]]:
    """Yield each batch with the teacher's logits (B, K) for its mixed images, which are those of
    the training step."""
    for batch in batches:
        images = mix(batch.unmixed, batch.lam, batch.box, dtype, channels_last=True)
        yield batch, teacher(images)


def record_chunks(
    writer: CacheWriter,
    loader: OrdinalLoader,
    chunks: Sequence[Chunk],
    teacher: Logits,
    dtype: torch.dtype,
    progress: Callable[[int, float], None],
) -> None:
    """Compute and write the chunks.

    loader: over their `ChunkBatches`. progress: called with samples done and samples a second.
    Raises CacheError as `CacheWriter.write` does, DataError as the loader does.
    """
    manifest = writer.manifest
    done = 0
    start = time.monotonic()
    stream = compute_logits(iter(loader), teacher, dtype)
    for epoch, chunk in chunks:
        size = len(manifest.ordinals(chunk))
        records = np.empty(size, manifest.record)
        rows = np.empty(size, np.int64)
        place = 0
        while place < size:
            batch, logits = next(stream)
            here = slice(place, place + len(logits))
            records[here] = encode(logits, manifest)
            rows[here] = batch.image_index.numpy()
            place = here.stop
            progress(done + place, (done + place) / (time.monotonic() - start))
        writer.write(epoch, chunk, records, rows)
        done += size
