"""The check of a split: the images that need it, its depth, and the work in threads or
processes."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fastdeit.data.checks.facts import Facts
from fastdeit.data.checks.jobs import BY_HEADER, DECODED, Job, check_chunk
from fastdeit.data.formats.check import ByteRange, in_parallel

CheckKind = Literal["auto", "headers", "decode"]

DECODED_IMAGES = 100_000
"""The largest number of images that `auto` decodes: about two minutes of a core."""
DECODED_BYTES = 8 * 2**30
"""The largest number of bytes of images that `auto` decodes."""
_CHUNK = 64  # images a worker takes at a time
_PROCESSES_FROM = 4000  # decoded images; below it, starting processes costs more than the decoding
_HEADERS = 30  # headers, whose check takes as long as decoding an image

Places = Callable[[np.ndarray], Sequence[ByteRange]]
"""A function from rows (int64 (n,)) to the files and byte ranges of their images."""


@dataclass(frozen=True)
class ImageCheck:
    """The check that the images of a split need.

    kind: "auto" decodes the images if they are at most `DECODED_IMAGES` and `DECODED_BYTES`, else
    it checks their headers. part: (i, n), only rows of the i-th of n parts, counted from 1, are
    decoded.
    """

    kind: CheckKind = "auto"
    part: tuple[int, int] = (1, 1)

    def needed(self, count: int) -> np.ndarray:
        """Return uint8 (count,): the depth of the check that each row must have had."""
        depth = np.full(count, BY_HEADER, np.uint8)
        if self.kind == "decode":
            number, parts = self.part
            depth[count * (number - 1) // parts : count * number // parts] = DECODED
        return depth

    def decoded(self, needed: np.ndarray, num_bytes: np.ndarray) -> np.ndarray:
        """Return bool (n,): whether each of the images that are checked now is decoded.

        needed: uint8 (n,), their rows of `needed`; num_bytes: int (n,), bytes of each.
        """
        if self.kind != "auto":
            return needed == DECODED
        is_small = len(needed) <= DECODED_IMAGES and num_bytes.sum() <= DECODED_BYTES
        return np.full(len(needed), is_small)


AUTO = ImageCheck()
"""The default check."""


def check_images(
    facts: Facts, num_bytes: np.ndarray, places: Places, wanted: ImageCheck, workers: int
) -> Iterator[int]:
    """Check the images whose facts do not have the wanted depth, and set their facts; yield the row
    of each image after its check.

    num_bytes: int64 (N,), bytes of each encoded image.
    """
    needed = wanted.needed(len(facts))
    rows = np.flatnonzero(~facts.is_sure | (facts.depth < needed))
    decode = wanted.decoded(needed[rows], num_bytes[rows])
    chunks = [slice(first, first + _CHUNK) for first in range(0, len(rows), _CHUNK)]

    def jobs(chunk: slice) -> list[Job]:
        is_known = facts.depth[rows[chunk]] >= needed[rows[chunk]]
        known = [
            facts.info(row) if is_deep else None
            for row, is_deep in zip(rows[chunk].tolist(), is_known.tolist(), strict=True)
        ]
        return list(map(Job, places(rows[chunk]), known, decode[chunk].tolist()))

    many = decode.sum() + len(rows) // _HEADERS >= _PROCESSES_FROM
    results = in_parallel(check_chunk, map(jobs, chunks), workers, processes=bool(many))
    for chunk, checked in zip(chunks, results, strict=True):
        for row, (found, depth) in zip(rows[chunk].tolist(), checked, strict=True):
            facts.set(row, found, depth or int(facts.depth[row]))
            yield row
