"""The samples of many shards or Parquet files, as arrays: there may be millions, and Python objects
for their names, places and labels take ten times the memory."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from fastdeit.data.formats.labels import Label, number_labels
from fastdeit.data.formats.listing import Listing, Stamps
from fastdeit.data.formats.shards.samples import Scan
from fastdeit.display.text import printable


class ScannedFiles:
    """The samples of the files that were added, in order.

    Attributes: counts, the number of samples of each file; labels, the different ones in order of
    appearance, None for samples without one; first_rows, the row in which each label appears first;
    faults, others, lone_labels, as in a `Scan`.
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
        """Add the samples of a file; `prefix` is put before their names."""
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
        """Return the names, (N,), in the bytes that the file system has."""
        return pa.concat_arrays(self._names or [pa.array([], pa.binary())])

    def numbers(self) -> np.ndarray:
        """Return int64 (3, N): offset and length of each image, and the place of its label in
        `labels`."""
        return np.concatenate(self._numbers or [np.zeros((3, 0), np.int64)], 1)

    def to_listing(
        self, root: Path, files: Sequence[str], stamps: Stamps, classes: Sequence[str] | None
    ) -> Listing:
        """Return the listing of all files; files: their paths relative to `root`.

        Raises DataError for labels that are not in `classes`.
        """
        names = self.names()

        def place(label: int) -> str:
            return f"{root}: {printable(os.fsdecode(names[self.first_rows[label]].as_py()))}"

        positions, known = number_labels(self.labels, classes, place)
        offsets, lengths, labels = self.numbers()
        times = [os.stat(os.path.join(root, file)) for file in files]
        return Listing(
            classes=known,
            names=names,
            labels=positions[labels],
            num_bytes=lengths,
            mtimes=np.repeat([facts.st_mtime_ns for facts in times], self.counts).astype(np.int64),
            ctimes=np.repeat([facts.st_ctime_ns for facts in times], self.counts).astype(np.int64),
            stamps=stamps,
            faults=self.faults,
            shards=tuple(files),
            shard=np.repeat(np.arange(len(files), dtype=np.int32), self.counts),
            offset=offsets,
        )
