"""The images of a packed split that are files in class folders, by the rows in their names."""

import bisect
import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

_ROW = re.compile(r"(\d{8,18})_")
_NO_ROW = -1  # of a file that has another name


class ClassFiles:
    """The files CLASS/NAME of a split, in the order of their rows; names are relative to the data
    set's folder."""

    def __init__(self, folder: Path, split: str) -> None:
        found = sorted(_list_files(folder, split))
        self._rows = [row for row, _ in found]
        self._names = [name for _, name in found]

    def named(self, rows: range) -> list[str]:
        """Return the names of the files whose rows are in the range."""
        return self._names[self._place(rows.start) : self._place(rows.stop)]

    def others(self, recorded: Iterable[range]) -> Iterator[tuple[str, bool]]:
        """Yield each file whose row is in none of the ranges, and whether it has a row."""
        place = self._place(0)
        yield from ((name, False) for name in self._names[:place])
        for rows in [*sorted(recorded, key=lambda rows: rows.start), None]:
            end = len(self._names) if rows is None else self._place(rows.start)
            yield from ((name, True) for name in self._names[place:end])
            place = place if rows is None else max(place, self._place(rows.stop))

    def _place(self, row: int) -> int:
        return bisect.bisect_left(self._rows, row)


def _list_files(folder: Path, split: str) -> Iterator[tuple[int, str]]:
    homes = os.scandir(folder / split) if (folder / split).is_dir() else ()
    for home in homes:
        for entry in os.scandir(home) if home.is_dir() else ():
            begins = _ROW.match(entry.name)
            row = int(begins[1]) if begins else _NO_ROW
            if entry.is_file():
                yield row, os.path.join(split, home.name, entry.name)


def hash_files(folder: Path, names: Sequence[str]) -> tuple[int, str]:
    """Return the total size of files in bytes, and the SHA-256 over each name, a zero byte and the
    content. Raises OSError for a file that cannot be read."""
    digest = hashlib.sha256()
    size = 0
    for name in names:
        data = (folder / name).read_bytes()
        digest.update(os.fsencode(name) + b"\0" + data)
        size += len(data)
    return size, digest.hexdigest()
