"""Byte ranges out of tar shards, several at a time."""

import io
import os
import resource
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

_READERS = 8  # threads
_SPARE_FILES = 512  # descriptors for everything else
_SHARERS = 4  # readers that share the other descriptors
_FEWEST_OPEN = 16  # shards, whatever the limit is
_Range = tuple[int, int, int]  # descriptor, length, offset


class ShardReader:
    """A reader of byte ranges in shards, which stay open as far as the limit of open files allows;
    the least recently used are closed first.

    A memory map would be set up faster, but a failing disk would kill the process.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = paths
        self._files: OrderedDict[int, io.FileIO] = OrderedDict()
        self._most_open = min(len(paths), _share_of_files(len(paths)))
        self._threads = ThreadPoolExecutor(_READERS, "shards")
        self._lock = threading.Lock()  # no file is closed while another thread reads it

    def read(
        self, shards: np.ndarray, lengths: np.ndarray, offsets: np.ndarray
    ) -> list[np.ndarray]:
        """Return uint8 arrays, one for each range; one is shorter where its shard ends.

        shards: places in the paths; lengths and offsets: in bytes; all three int (n,). Raises
        OSError for a shard that cannot be read.
        """
        arrays: list[Any] = [None] * len(shards)
        with self._lock:
            for rows in self._open_together(shards):
                descriptors = map(self._open, shards[rows].tolist())
                ranges = zip(
                    descriptors, lengths[rows].tolist(), offsets[rows].tolist(), strict=True
                )
                for row, array in zip(rows.tolist(), self._read(list(ranges)), strict=True):
                    arrays[row] = array
        return arrays

    def _open_together(self, shards: np.ndarray) -> Iterator[np.ndarray]:
        """Yield int64 (k,): the numbers of the ranges in as many shards as may be open at once."""
        place = np.unique(shards, return_inverse=True)[1]
        for first in range(0, int(place.max(initial=-1)) + 1, self._most_open):
            yield np.flatnonzero((place >= first) & (place < first + self._most_open))

    def _read(self, ranges: Sequence[_Range]) -> list[np.ndarray]:
        # the disk reads several at a time, without Python's lock
        parts = self._threads.map(_read_ranges, (ranges[i::_READERS] for i in range(_READERS)))
        arrays: list[Any] = [None] * len(ranges)
        for first, part in enumerate(parts):
            arrays[first::_READERS] = part
        return arrays

    def _open(self, shard: int) -> int:
        """Return the shard's descriptor; if too many are open, close the least recently used
        shard."""
        if shard not in self._files:
            while len(self._files) >= self._most_open:
                self._files.popitem(last=False)[1].close()
            self._files[shard] = open(self._paths[shard], "rb", buffering=0)  # noqa: SIM115
        self._files.move_to_end(shard)
        return self._files[shard].fileno()


def _read_ranges(ranges: Sequence[_Range]) -> list[np.ndarray]:
    return [np.frombuffer(os.pread(*one), np.uint8) for one in ranges]


def _share_of_files(count: int) -> int:
    """Return the number of shards that one reader may leave open; raise this process's limit of
    open files for `count` shards, as far as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _SHARERS * count + _SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY:
        return count
    return max(_FEWEST_OPEN, (soft - _SPARE_FILES) // _SHARERS)
