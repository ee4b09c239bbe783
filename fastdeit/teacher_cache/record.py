"""Recording the teacher: plan -> DALI -> mix -> teacher -> cache, chunk by chunk.

The chunks that a job has to do are dealt out to its ranks, and a rank computes its chunks alone, in
micro-batches that start anew with each: so what is recorded depends on the micro-batch, never on
the number of ranks or jobs, or on where it was stopped.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fastdeit.data.batch import Batch
from fastdeit.data.loader import OrdinalLoader
from fastdeit.kernels.mix import mix
from fastdeit.teacher_cache.format import Manifest, encode
from fastdeit.teacher_cache.reader import Cache, Images
from fastdeit.teacher_cache.writer import CacheWriter

Chunk = tuple[int, int]
"""Epoch and number of a chunk in it."""
Logits = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class JobShard:
    """One of several jobs: number 1 to `of`."""

    number: int = 1
    of: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.of:
            raise ValueError(
                f"--part: got {self.number}/{self.of}, allowed is NUMBER/JOBS with NUMBER from 1 to JOBS"
            )

    def chunks(self, manifest: Manifest, epochs: Sequence[int]) -> list[Chunk]:
        """The job's share, a run of neighbours."""
        every = [(epoch, chunk) for epoch in epochs for chunk in range(manifest.chunks)]
        return every[
            len(every) * (self.number - 1) // self.of : len(every) * self.number // self.of
        ]


def missing(folder: Path, chunks: Sequence[Chunk], images: Images | None) -> list[Chunk]:
    """Those that are not recorded, or damaged, or, if images are given, made of others."""
    cache = Cache(folder)
    return [
        (epoch, chunk) for epoch, chunk in chunks if cache.fault(epoch, chunk, images) is not None
    ]


class ChunkBatches(Sequence[tuple[int, np.ndarray]]):
    """The micro-batches of the chunks: epoch and ordinals of each, made when they are asked for."""

    def __init__(self, manifest: Manifest, chunks: Sequence[Chunk], micro_batch: int) -> None:
        self._manifest, self._chunks = manifest, chunks
        self.micro_batch = min(micro_batch, manifest.chunk)
        counts = [-(-len(manifest.ordinals(chunk)) // self.micro_batch) for _, chunk in chunks]
        self._starts = np.cumsum([0, *counts])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, number: int) -> tuple[int, np.ndarray]:  # type: ignore[override]  # slices are never taken
        place = int(np.searchsorted(self._starts, number, "right")) - 1
        epoch, chunk = self._chunks[place]
        first = (number - int(self._starts[place])) * self.micro_batch
        return epoch, self._manifest.ordinals(chunk)[first : first + self.micro_batch]


@torch.no_grad()
def answers(
    batches: Iterator[Batch], teacher: Logits, dtype: torch.dtype
) -> Iterator[tuple[Batch, torch.Tensor]]:
    """The teacher's logits (B, K) for the mixed images of each batch, as the training step shows
    them."""
    for batch in batches:
        images = mix(batch.images, batch.lam, batch.box, dtype, channels_last=True)
        yield batch, teacher(images)


def record(
    recorder: CacheWriter,
    loader: OrdinalLoader,
    chunks: Sequence[Chunk],
    teacher: Logits,
    dtype: torch.dtype,
    progress: Callable[[int, float], None],
) -> None:
    """Compute and write the chunks. loader: over their `ChunkBatches`. progress: called with
    samples done and samples a second.

    Raises CacheError as `CacheWriter.write`, DataError as the loader.
    """
    manifest, done, start = recorder.manifest, 0, time.monotonic()
    stream = answers(iter(loader), teacher, dtype)
    for epoch, chunk in chunks:
        size = len(manifest.ordinals(chunk))
        records, rows = np.empty(size, manifest.record), np.empty(size, np.int64)
        place = 0
        while place < size:
            batch, logits = next(stream)
            here = slice(place, place + len(logits))
            records[here], rows[here] = encode(logits, manifest), batch.image_index.numpy()
            place = here.stop
            progress(done + place, (done + place) / (time.monotonic() - start))
        recorder.write(epoch, chunk, records, rows)
        done += size
