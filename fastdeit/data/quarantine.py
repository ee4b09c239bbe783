"""Images that turn out unreadable while a run goes on, so that training goes on without them.

A file that is damaged, deleted or replaced after the index was built costs DALI its whole batch.
The loader then asks here which images are at fault; they are written down, in the log and in a file
of JSON lines, and never read again. What takes their place is the plan's to say (`Plan.exclude`),
and it depends on nothing but the set of bad images, so ranks that find the same image bad at
different times agree. The file is read when a run goes on.
"""

import hashlib
import json
import logging
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from fastdeit.data.index import DataError, Index

RETRIES_S = (0.1, 0.5, 2.0)
"""Pauses before a file that cannot be read is tried again: network file systems fail for a moment.
"""

_FEWEST, _SHARE = 10, 10_000  # bad images that are always allowed, and one in so many beyond
_NAMED = 10
_CUT = "lies beyond the end of its shard"

_log = logging.getLogger(__name__)


class Quarantine:
    """The bad images of one index, found at run time.

    policy: "skip" collects them, "error" raises DataError at the first. file: JSON lines, one a bad
    image, that are read at the start and appended to; several ranks may share it. Raises DataError
    also when more than 10 files and one in 10,000 images are bad: then the storage is at fault, not
    a file. Attributes: step, the optimizer steps done, which is written beside an image: from that
    step on it was left out.
    """

    def __init__(self, index: Index, policy: str = "skip", file: Path | None = None) -> None:
        self._index, self._policy, self._file = index, policy, file
        entries = read_entries(file, index.split)
        self._faults = {
            entry["row"]: entry["fault"] for entry in entries if entry["row"] < len(index)
        }
        self._unwritten: dict[int, str] = {}
        self.step = 0

    def __len__(self) -> int:
        return len(self._faults)

    @property
    def rows(self) -> np.ndarray:
        """int64 (n,): rows of the index that must not be read, ascending."""
        return np.array(sorted(self._faults), np.int64)

    def fingerprint(self) -> str:
        """A digest of which images all who share the file have found bad."""
        rows = self._faults.keys() | {
            entry["row"] for entry in read_entries(self._file, self._index.split)
        }
        return hashlib.sha256(json.dumps(sorted(rows)).encode()).hexdigest()

    def count_all(self) -> int:
        """Bad images that all who share the file have found."""
        return max(len(self), len(read_entries(self._file, self._index.split)))

    def diagnose(self, rows: Iterable[int]) -> dict[int, str]:
        """What is wrong with those of `rows` that cannot be read or decoded now, by row; a failing
        read is tried again.

        With an image that a shard has no bytes for come all others that it is too short for.
        """
        faults = {int(row): fault for row in rows if (fault := self._index.check(int(row)))}
        for pause in RETRIES_S:
            if all(self._can_be_read(row) for row in faults):
                break
            time.sleep(pause)
        faults = {row: fault for row in faults if (fault := self._index.check(row))}
        cut = (self._index.beyond_the_end(row) for row in list(faults))
        return (
            dict.fromkeys(np.unique(np.concatenate([*cut, np.zeros(0, np.int64)])).tolist(), _CUT)
            | faults
        )

    def wait(self, attempt: int) -> None:
        """The pause after try number `attempt` (from 0) at a batch that failed, though each image
        of it can be read now."""
        time.sleep(RETRIES_S[min(attempt, len(RETRIES_S) - 1)])

    def _can_be_read(self, row: int) -> bool:
        try:
            return bool(self._index.read(row))
        except OSError:
            return False

    def add(self, faults: dict[int, str]) -> None:
        """Takes images out of the run and writes them down. Raises DataError as the policy and the
        limit say."""
        try:
            self.exclude(faults)
        finally:
            self.write()

    def exclude(self, faults: dict[int, str]) -> None:
        """As `add`, but written down only by the next `write`."""
        if self._policy == "error":
            raise DataError(
                self._listing(
                    faults, "image(s) could not be read; --bad-images skip goes on without them"
                )
            )
        new = {row: fault for row, fault in faults.items() if row not in self._faults}
        self._faults |= new
        self._unwritten |= new
        if new:
            _log.warning(self._listing(new, f"image(s) left out from now on, {len(self)} so far"))
        if self._index.count_files(self.rows) > max(_FEWEST, len(self._index) // _SHARE):
            raise DataError(
                self._listing(
                    self._faults, "images could not be read since the run began, too many to go on"
                )
            )

    def _listing(self, faults: dict[int, str], problem: str) -> str:
        named = [
            f"{self._index.name(row)}: {fault}" for row, fault in list(faults.items())[:_NAMED]
        ]
        more = [f"and {len(faults) - _NAMED} more"] if len(faults) > _NAMED else []
        return "\n  ".join([f"{self._index.root}: {len(faults)} {problem}:", *named, *more])

    def write(self) -> None:
        """Writes down the images that are not in the file yet."""
        new, self._unwritten = self._unwritten, {}
        if self._file is None or not new:
            return
        facts = {"split": self._index.split, "step": self.step}
        entries = [
            facts | {"row": row, "name": self._index.name(row), "fault": fault}
            for row, fault in new.items()
        ]
        # one write: ranks do not mix their lines; from a new line on: the last one may have been
        # cut off by a crash
        lines = "".join(f"\n{json.dumps(entry)}" for entry in entries) + "\n"
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("ab", buffering=0) as file:
                file.write(lines.encode())
        except OSError as error:  # the images will be found again
            _log.warning("%s: not written: %s", self._file, error)


def read_entries(file: Path | None, split: str) -> list[dict[str, Any]]:
    """The images of a split that runs have put down in `file`, each as it was first; none if there
    is no file. What a crash cut off is passed over: the image will be found again."""
    entries: dict[int, dict[str, Any]] = {}
    for line in file.read_text().splitlines() if file is not None and file.is_file() else ():
        try:
            entry = json.loads(line)
        except (json.JSONDecodeError, RecursionError):
            continue
        if isinstance(entry, dict) and entry.get("split") == split and _is_entry(entry):
            entries.setdefault(entry["row"], entry)
    return list(entries.values())


def _is_entry(entry: dict[str, Any]) -> bool:
    return (
        type(entry.get("row")) is int and entry["row"] >= 0 and isinstance(entry.get("fault"), str)
    )
