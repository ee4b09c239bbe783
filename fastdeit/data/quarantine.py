"""The quarantine: images that cannot be read during a run, and are excluded from then on.

A file that is damaged, deleted or replaced after the index was built costs DALI its whole batch.
The loader then asks here which images are at fault; they are recorded, in the log and in a file of
JSON lines, and never read again. The plan decides what replaces them (`Plan.exclude`), and that
depends on the set of bad images alone, so ranks that find the same image bad at different times
agree. A resumed run reads the file.
"""

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastdeit.data.formats.check import UNREAD
from fastdeit.data.index import DataError, Index
from fastdeit.storage.jsonl import append_lines, read_records

RETRIES_S = (0.1, 0.5, 2.0)
"""Pauses in seconds before a file that could not be read is read again: network file systems fail
for a moment."""

_FEWEST = 10  # bad files that are always allowed
_SHARE = 10_000  # in a large data set, one image in this many may be bad
_SHARE_UNDECODED = 100  # likewise of images whose header alone was checked by the index
_NAMED = 10  # images that a message names
_CUT = "lies beyond the end of its shard"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class QuarantinedImage:
    """A line of quarantine.jsonl."""

    split: str
    step: int = 0
    """The number of optimizer steps done when the image was found bad and excluded."""
    row: int
    """The image's row in the index."""
    name: str = ""
    fault: str


class Quarantine:
    """The bad images of one index, found at run time.

    policy: "skip" excludes them, "error" raises DataError at the first. file: JSON lines, one for
    each bad image, which are read at the start and appended to; several ranks may share it. Raises
    DataError also when more than 10 files and more than one image in 10,000 are bad: then the
    storage is at fault, not a file; of images that were never decoded before, one in 100 may be
    damaged. Attributes: step, the number of optimizer steps before the batch that is being made,
    which is recorded with an image. A loader may add images in one thread while another thread
    reads them.
    """

    def __init__(self, index: Index, policy: str = "skip", file: Path | None = None) -> None:
        self._index = index
        self._policy = policy
        self._file = file
        recorded = read_quarantine(file, index.split)
        self._faults = {image.row: image.fault for image in recorded if image.row < len(index)}
        self._unwritten: dict[int, str] = {}
        self._counted: tuple[tuple[int, int], int] | None = None
        self.step = 0

    @classmethod
    def of(cls, index: Index, rows: Iterable[int], policy: str = "strict") -> "Quarantine":
        """Return a quarantine of known rows, without a file.

        "strict" is for a replay: `exclude` raises DataError for any other image, since the run
        could read it.
        """
        quarantine = cls(index, policy)
        quarantine._faults = dict.fromkeys(rows, "")
        return quarantine

    def __len__(self) -> int:
        return len(self._faults)

    @property
    def rows(self) -> np.ndarray:
        """Return the rows of the index that must not be read, ascending: int64 (n,)."""
        return np.array(sorted(self._faults), np.int64)

    def fingerprint(self) -> str:
        """Return a SHA-256 over the rows that all processes with this file have found bad."""
        rows = self._faults.keys() | {image.row for image in self._recorded()}
        return hashlib.sha256(json.dumps(sorted(rows)).encode()).hexdigest()

    def count_all(self) -> int:
        """Return the number of bad images that all processes with this file have found; read the
        file only if it has changed."""
        stamp = _read_stamp(self._file)
        if self._counted is None or self._counted[0] != stamp:
            self._counted = stamp, len(self._recorded())
        return max(len(self), self._counted[1])

    def _recorded(self) -> list[QuarantinedImage]:
        return read_quarantine(self._file, self._index.split)

    def diagnose(self, rows: Iterable[int]) -> dict[int, str]:
        """Return the fault of each of `rows` that cannot be read or decoded now, by row.

        A read that fails is repeated after each pause of `RETRIES_S`. If a shard ends before an
        image, all other images beyond the shard's end are returned, too.
        """
        faults = self._check(map(int, rows))
        for pause in RETRIES_S:
            if all(self._can_be_read(row) for row in faults):
                break
            time.sleep(pause)
        faults = self._check(faults)
        lost: set[int] = set()
        for row in faults:
            lost.update(self._index.beyond_the_end(row).tolist())
        return dict.fromkeys(sorted(lost), _CUT) | faults

    def _check(self, rows: Iterable[int]) -> dict[int, str]:
        return {row: fault for row in rows if (fault := self._index.check(row))}

    def wait(self, attempt: int) -> None:
        """Sleep before a batch is made again that failed though each of its images can be read.

        attempt: the number of earlier attempts.
        """
        time.sleep(RETRIES_S[min(attempt, len(RETRIES_S) - 1)])

    def _can_be_read(self, row: int) -> bool:
        try:
            return bool(self._index.read(row))
        except OSError:
            return False

    def add(self, faults: dict[int, str]) -> None:
        """Exclude images from the run and record them. Raises DataError as `exclude` does."""
        try:
            self.exclude(faults)
        finally:
            self.write()

    def exclude(self, faults: dict[int, str]) -> None:
        """Exclude images from the run; the next `write` records them.

        Raises DataError by the policy ("error" or "strict"), or if too many images are bad.
        """
        if self._policy == "strict":
            named = "; ".join(f"{self._index.name(row)}: {fault}" for row, fault in faults.items())
            raise DataError(
                f"{self._index.root}: the run read images that cannot be read as they were: {named}"
            )
        if self._policy == "error":
            advice = "image(s) could not be read; --bad-images skip continues without them"
            raise DataError(self._list(faults, advice))
        new = {row: fault for row, fault in faults.items() if row not in self._faults}
        # new dictionaries: another thread may be reading the old ones
        self._faults = self._faults | new
        self._unwritten = self._unwritten | new
        if new:
            _log.warning(self._list(new, f"image(s) excluded from now on, {len(self)} in all"))
        self._refuse_many()

    def _refuse_many(self) -> None:
        """Raise DataError if too many images are bad."""
        undecoded = self._undecoded()
        others = np.setdiff1d(self.rows, undecoded)
        problem = "images could not be read since the run began, too many to continue"
        if self._is_over(others, _SHARE):
            raise DataError(self._list(self._faults, problem))
        if self._is_over(undecoded, _SHARE_UNDECODED):
            advice = "only headers were checked; `fastdeit index --check decode` finds all of them"
            raise DataError(self._list(self._faults, f"{problem} ({advice})"))

    def _undecoded(self) -> np.ndarray:
        """Return int64 (n,): the rows of bad images whose damage may be older than the run, as the
        index checked their header alone."""
        header_only = self._index.header_only
        rows = self.rows
        if header_only is None:
            return rows[:0]
        is_storage = [self._faults[row].startswith((UNREAD, _CUT)) for row in rows.tolist()]
        return rows[header_only[rows] & ~np.array(is_storage, bool)]

    def _is_over(self, rows: np.ndarray, share: int) -> bool:
        return self._index.count_files(rows) > max(_FEWEST, len(self._index) // share)

    def _list(self, faults: dict[int, str], problem: str) -> str:
        lines = [f"{self._index.root}: {len(faults)} {problem}:"]
        for row, fault in list(faults.items())[:_NAMED]:
            lines.append(f"{self._index.name(row)}: {fault}")
        if len(faults) > _NAMED:
            lines.append(f"and {len(faults) - _NAMED} more")
        return "\n  ".join(lines)

    def write(self) -> None:
        """Record the images that are not in the file yet."""
        new = [self._record(row, fault) for row, fault in self._unwritten.items()]
        self._unwritten = {}
        if self._file is None or not new:
            return
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            append_lines(self._file, new)
        except OSError as error:  # the images will be found again
            _log.warning("%s cannot be written: %s", self._file, error)

    def _record(self, row: int, fault: str) -> QuarantinedImage:
        return QuarantinedImage(
            split=self._index.split,
            step=self.step,
            row=row,
            name=self._index.name(row),
            fault=fault,
        )


def _read_stamp(file: Path | None) -> tuple[int, int]:
    """Return the size in bytes and the time of modification of a file in ns; zeros if there is
    none."""
    try:
        facts = os.stat(file or "")
    except OSError:
        return 0, 0
    return facts.st_size, facts.st_mtime_ns


def read_quarantine(file: Path | None, split: str) -> list[QuarantinedImage]:
    """Return the images of a split in a quarantine file, each as it was first recorded.

    A line that a crash has cut short is skipped: the image will be found again.
    """
    images: dict[int, QuarantinedImage] = {}
    for image in read_records(file, QuarantinedImage) if file is not None else ():
        if image.split == split and image.row >= 0:
            images.setdefault(image.row, image)
    return list(images.values())
