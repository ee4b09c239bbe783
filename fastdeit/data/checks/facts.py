"""The facts or the fault of each image of a split, and how it was checked: in arrays, as there may
be millions of rows."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fastdeit.data.checks.jobs import BY_HEADER, DECODED, UNKNOWN
from fastdeit.data.formats.check import UNREAD, Checked, ImageInfo

HEADER_ONLY = "header_only"
"""The column of a table that is True where the header alone was checked; older tables have none."""
_NUMBERS = {"height": np.int32, "width": np.int32, "orientation": np.int8}
_TEXTS = ("format", "mode", "fault")


def header_only(table: pa.Table) -> np.ndarray:
    """Return bool (N,): the rows of a table whose header alone was checked."""
    if HEADER_ONLY not in table.column_names:
        return np.zeros(len(table), bool)
    return np.asarray(pc.fill_null(table[HEADER_ONLY], False).to_numpy())


def tabulate(checked: Sequence[Checked]) -> pa.Table:
    """Return the table of decoded images, in the columns of `Facts`."""
    facts = Facts(len(checked))
    for row, one in enumerate(checked):
        facts.set(row, one, DECODED)
    return pa.table(facts.columns())


class Facts:
    """The facts of N images, by row.

    Attributes: depth, uint8 (N,), of each image's check; is_sure, bool (N,), False where the facts
    are those of an earlier file, which may have been replaced.
    """

    def __init__(self, count: int) -> None:
        self.depth = np.zeros(count, np.uint8)
        self.is_sure = np.zeros(count, bool)
        self._numbers = {name: np.zeros(count, kind) for name, kind in _NUMBERS.items()}
        self._texts = {name: _Texts(count) for name in _TEXTS}

    def __len__(self) -> int:
        return len(self.depth)

    @classmethod
    def of_alike(cls, count: int, info: ImageInfo) -> "Facts":
        """Return the facts of images that are all the same and need no check."""
        facts = cls(count)
        for name, values in facts._numbers.items():
            values[:] = getattr(info, name)
        for name in ("format", "mode"):
            facts._texts[name].fill(getattr(info, name))
        facts.depth[:] = DECODED
        facts.is_sure[:] = True
        return facts

    @classmethod
    def of_table(cls, was: pa.Table, is_alike: np.ndarray, is_sure: np.ndarray) -> "Facts":
        """Return the facts in the rows of a stored table.

        is_alike, is_sure: bool (N,), whether a row's facts are probably, and certainly, those of
        the image.
        """
        facts = cls(len(was))
        for name, values in facts._numbers.items():
            values[:] = pc.fill_null(was[name], 0).to_numpy()
        facts._texts = {name: _Texts.of_column(was[name]) for name in _TEXTS}
        has_fault = pc.is_valid(was["fault"]).to_numpy()
        unread = pc.fill_null(pc.starts_with(was["fault"], UNREAD), False).to_numpy()
        # the fault of an earlier file may be gone
        known = is_alike & ~unread & (is_sure | ~has_fault)
        depth = np.where(header_only(was), BY_HEADER, DECODED)
        facts.depth[:] = np.where(known, depth, UNKNOWN)
        facts.is_sure[:] = is_sure & known
        return facts

    def info(self, row: int) -> ImageInfo:
        """Return the facts of a good image."""
        return ImageInfo(
            height=int(self._numbers["height"][row]),
            width=int(self._numbers["width"][row]),
            format=self._texts["format"].get(row) or "",
            mode=self._texts["mode"].get(row) or "",
            orientation=int(self._numbers["orientation"][row]),
        )

    def set(self, row: int, checked: Checked, depth: int) -> None:
        """Store the result of a check: the facts or the fault, and the depth of the check."""
        fault = checked if isinstance(checked, str) else None
        for name, values in self._numbers.items():
            values[row] = 0 if fault else getattr(checked, name)
        for name in ("format", "mode"):
            self._texts[name].set(row, None if fault else getattr(checked, name))
        self._texts["fault"].set(row, fault)
        self.depth[row] = DECODED if fault else depth
        self.is_sure[row] = True

    def take(self, other: "Facts", rows: np.ndarray) -> None:
        """Replace the facts of `rows` (int64 (n,)) by those in `other`, whose rows are the same
        images."""
        for name, values in self._numbers.items():
            values[rows] = other._numbers[name][rows]
        for name, texts in self._texts.items():
            texts.take(other._texts[name], rows)
        self.depth[rows] = other.depth[rows]
        self.is_sure[rows] = other.is_sure[rows]

    def faults(self) -> Mapping[int, str]:
        """Return the fault of each bad image, by row."""
        texts = self._texts["fault"]
        rows = np.flatnonzero(texts.codes >= 0).tolist()
        return {row: texts.get(row) or "" for row in rows}

    def columns(self) -> dict[str, pa.Array]:
        """Return the columns of a table, by name."""
        is_bad = self._texts["fault"].codes >= 0
        orientation = self._numbers["orientation"]
        return {
            "height": pa.array(self._numbers["height"]),
            "width": pa.array(self._numbers["width"]),
            "format": self._texts["format"].to_column(),
            "mode": self._texts["mode"].to_column(),
            "orientation": pa.array(orientation, mask=is_bad),
            "fault": self._texts["fault"].to_column(),
            HEADER_ONLY: pa.array(self.depth == BY_HEADER),
        }


class _Texts:
    """A column of texts, of which few differ or most are missing: one code for each row."""

    def __init__(self, count: int, values: Sequence[str] = ()) -> None:
        self.codes = np.full(count, -1, np.int32)
        self._values = list(values)
        self._code_of = dict(zip(self._values, itertools.count()))

    @classmethod
    def of_column(cls, column: pa.ChunkedArray) -> "_Texts":
        encoded = column.combine_chunks().dictionary_encode()
        texts = cls(len(column), encoded.dictionary.to_pylist())
        texts.codes[:] = pc.fill_null(encoded.indices, -1).to_numpy()
        return texts

    def get(self, row: int) -> str | None:
        code = self.codes[row]
        return None if code < 0 else self._values[code]

    def set(self, row: int, text: str | None) -> None:
        self.codes[row] = -1 if text is None else self._encode(text)

    def fill(self, text: str) -> None:
        self.codes[:] = self._encode(text)

    def _encode(self, text: str) -> int:
        code = self._code_of.setdefault(text, len(self._values))
        if code == len(self._values):
            self._values.append(text)
        return code

    def take(self, other: "_Texts", rows: np.ndarray) -> None:
        # the last code stands for -1
        codes = np.array([*(self._encode(text) for text in other._values), -1], np.int32)
        self.codes[rows] = codes[other.codes[rows]]

    def to_column(self) -> pa.Array:
        codes = pa.array(self.codes, mask=self.codes < 0)
        values = pa.array(self._values, pa.string())
        return pa.DictionaryArray.from_arrays(codes, values).cast(pa.string())
