"""The samples of many shards, as arrays: there may be millions, and a Python object for each of
their names, places and labels takes ten times the memory."""

from collections import Counter

import numpy as np
import pyarrow as pa

from fastdeit.data.formats.labels import Label
from fastdeit.data.formats.shards.samples import Scan


class Columns:
    """The samples of the shards that were added, in order.

    Attributes: counts, the samples of each shard; labels, the different ones in order of
    appearance, of which None is that of a sample without one; first_rows, the row in which each
    appears first; faults, others, lone_labels: as those of a `Scan`.
    """

    def __init__(self) -> None:
        self.counts: list[int] = []
        self.first_rows: list[int] = []
        self.faults: dict[int, str] = {}
        self.others: Counter[str] = Counter()
        self.lone_labels: list[str] = []
        self._names: list[pa.BinaryArray] = []
        self._numbers: list[np.ndarray] = []
        self._codes: dict[Label | None, int] = {}
        self._rows = 0

    @property
    def labels(self) -> list[Label | None]:
        return list(self._codes)

    def add(self, scan: Scan, prefix: str) -> None:
        """Add the samples of a shard, their names after `prefix`."""
        first = self._rows
        for place, label in enumerate(scan.labels):
            if self._codes.setdefault(label, len(self._codes)) == len(self.first_rows):
                self.first_rows.append(first + place)
        codes = [self._codes[label] for label in scan.labels]
        names = [(prefix + name).encode("utf-8", "surrogateescape") for name in scan.names]
        self._names.append(pa.array(names, pa.binary()))
        self._numbers.append(np.array([scan.offsets, scan.lengths, codes], np.int64))
        self.counts.append(len(names))
        self.faults |= {first + row: fault for row, fault in scan.faults.items()}
        self.others += scan.others
        self.lone_labels += [prefix + key for key in scan.lone_labels]
        self._rows += len(names)

    def names(self) -> pa.BinaryArray:
        """Return the names, as bytes of the file system."""
        return pa.concat_arrays(self._names or [pa.array([], pa.binary())])

    def numbers(self) -> np.ndarray:
        """Return int64 (3, N): offset and length of each image, and the place of its label in
        `labels`."""
        return np.concatenate(self._numbers or [np.zeros((3, 0), np.int64)], 1)
