"""Byte ranges out of tar shards, several at a time."""

import io
import os
import resource
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

_READERS = 8  # threads
_SPARE_FILES = 512  # descriptors left to everything else
_Range = tuple[int, int, int]  # descriptor, length, offset


class ShardReader:
    """Reads byte ranges of shards, which it keeps open.

    A memory map would be faster to set up, but a failing disk would kill the process.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = paths
        self._files: dict[int, io.FileIO] = {}
        self._threads = ThreadPoolExecutor(_READERS, "shards")

    def read(
        self, shards: np.ndarray, lengths: np.ndarray, offsets: np.ndarray
    ) -> list[np.ndarray]:
        """Return uint8 arrays, one a range; shorter than asked where a shard ends.

        shards: places in the paths. All three: int (n,). Raises OSError.
        """
        descriptors = map(self._open, shards.tolist())
        ranges = list(zip(descriptors, lengths.tolist(), offsets.tolist(), strict=True))
        # the disk is asked for several at a time, without the interpreter's lock
        parts = self._threads.map(_read_ranges, (ranges[i::_READERS] for i in range(_READERS)))
        arrays: list[Any] = [None] * len(ranges)
        for first, part in enumerate(parts):
            arrays[first::_READERS] = part
        return arrays

    def _open(self, shard: int) -> int:
        """Return the shard's descriptor."""
        if shard not in self._files:
            _allow_open_files(len(self._paths))
            self._files[shard] = open(self._paths[shard], "rb", buffering=0)  # noqa: SIM115
        return self._files[shard].fileno()


def _read_ranges(ranges: Sequence[_Range]) -> list[np.ndarray]:
    return [np.frombuffer(os.pread(*one), np.uint8) for one in ranges]


def _allow_open_files(count: int) -> None:
    """Raise this process's limit of open files, as far as it may, so that `count` more fit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + _SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
