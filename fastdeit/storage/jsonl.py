"""Files of JSON lines: one way to append to them and one way to read them.

Each line is one JSON object and ends with a newline (https://jsonlines.org). A process that is
killed while it writes leaves an incomplete line: the next append removes it, and a reader skips
every line that is not a whole JSON object.
"""

import contextlib
import dataclasses
import fcntl
import json
import math
import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from io import FileIO
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from pydantic import TypeAdapter

from fastdeit.storage.atomic import atomic_write_text, open_no_link
from fastdeit.storage.json_values import load_json

MAX_PENDING = 10_000
"""The largest number of records that wait in memory while the disk refuses them."""

Record = TypeVar("Record")

_BYTE = re.compile(r"\\u(dc[89a-f][0-9a-f])")


class StepRecord(Protocol):
    """The interface of a record of one optimizer step."""

    @property
    def step(self) -> int: ...


OneStep = TypeVar("OneStep", bound=StepRecord)


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Return the JSON objects in a file, one per line; skip other lines. Return an empty list if
    there is no file. Raises OSError."""
    values = map(_parse_object, path.read_bytes().splitlines() if path.is_file() else ())
    return [value for value in values if value is not None]


def _parse_object(line: bytes) -> dict[str, Any] | None:
    """Return the JSON object of a line, or None if the line is not a whole JSON object."""
    try:
        value = load_json(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def read_records(path: Path, kind: type[Record], strict: bool = False) -> list[Record]:
    """Return the lines of a file that are records of the dataclass `kind`; skip all others.

    strict: raise ValueError for the first line that is not such a record, unless it is blank.
    """
    records = []
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        try:
            records.append(parse_record(line, kind))
        except ValueError:
            if strict and line.strip():
                got = line[:80].decode(errors="replace")
                raise ValueError(f"{path}: damaged line (got {got!r})") from None
    return records


def parse_record(text: str | bytes, kind: type[Record]) -> Record:
    """Return a record from its JSON text; unknown keys are ignored.

    Raises ValueError if a field is missing or is not of the type that `kind` declares.
    """
    value = to_strict_json(load_json(text))
    return TypeAdapter(kind).validate_json(json.dumps(value), strict=True)


def to_strict_json(value: Any) -> Any:
    """Return a value in strict JSON: a number that is not finite becomes its name ("nan", "inf",
    "-inf"), and a byte of a file name that is not UTF-8 its escape (\\udcff)."""
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {to_strict_json(name): to_strict_json(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_strict_json(item) for item in value]
    return value


def restore_names(value: Any) -> Any:
    """Return a value of `to_strict_json` in which the escapes of bytes that are not UTF-8 are bytes
    again."""
    if isinstance(value, str):
        return _BYTE.sub(lambda match: chr(int(match[1], 16)), value)
    if isinstance(value, dict):
        return {name: restore_names(item) for name, item in value.items()}
    return value


def format_line(record: Any) -> str:
    """Return a mapping or a dataclass as one line of strict JSON, with the newline."""
    value = record if isinstance(record, Mapping) else dataclasses.asdict(record)
    return json.dumps(to_strict_json(value), allow_nan=False) + "\n"


def append_lines(path: Path, records: Iterable[Any]) -> None:
    """Append mappings or dataclasses, one per line, all or none. Raises OSError.

    If the file system has locks, processes that share the file write one after the other.
    """
    lines = "".join(map(format_line, records)).encode()
    with open(path, "ab+", buffering=0, opener=open_no_link) as file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        _end_last_line(file)
        _write_whole(file, lines)


def _end_last_line(file: FileIO) -> None:
    """Remove an incomplete last line, which a killed process left, or add its newline if only that
    is missing."""
    file.seek(0)
    *whole, last = file.readall().split(b"\n")
    if _parse_object(last) is not None:
        _write_whole(file, b"\n")
    elif last:
        file.truncate(sum(len(line) + 1 for line in whole))


def _write_whole(file: FileIO, data: bytes) -> None:
    """Append all of the data or nothing, as a full disk may accept some bytes. Raises OSError."""
    end = file.seek(0, os.SEEK_END)
    try:
        _write_all(file, data)
    except OSError:
        file.truncate(end)
        raise


def _write_all(file: FileIO, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def replace_lines(path: Path, records: Iterable[Any]) -> None:
    """Write a whole file of mappings or dataclasses atomically. Raises OSError."""
    atomic_write_text(path, "".join(map(format_line, records)))


class AppendOnlyFile:
    """A file to which records are appended, each whole or not at all.

    Records that the disk refuses wait in memory (the newest `MAX_PENDING`) and are written with the
    next record that the disk accepts. warn: called with a line when refusals begin and end, and
    with the number of records that were lost. Raises OSError if the file cannot be created.
    """

    def __init__(self, path: Path, warn: Callable[[str], None]) -> None:
        self._path = path
        self._warn = warn
        self._file = open(path, "ab", buffering=0, opener=open_no_link)  # noqa: SIM115
        self._waiting: deque[bytes] = deque()
        self._torn: int | None = None
        """The offset of a record that was written incompletely."""
        self._lost = 0
        self._refused = False

    def append(self, record: bytes) -> None:
        """Write a record, or store it in memory if the disk refuses it."""
        self._waiting.append(record)
        if len(self._waiting) > MAX_PENDING:
            self._waiting.popleft()
            self._lost += 1
        try:
            self._write()
        except OSError as error:
            if not self._refused:
                kept = f"the newest {MAX_PENDING:,} records are kept in memory"
                self._warn(f"{self._path} cannot be written: {error}; the run continues, {kept}")
            self._refused = True
            return
        if self._refused:
            self._warn(f"{self._path} can be written again{self._describe_loss()}")
        self._lost = 0
        self._refused = False

    def _write(self) -> None:
        while self._waiting:
            if self._torn is not None:
                self._file.truncate(self._torn)
            self._torn = self._file.seek(0, os.SEEK_END)
            _write_all(self._file, self._waiting[0])
            self._torn = None
            self._waiting.popleft()

    def _describe_loss(self) -> str:
        if not self._lost:
            return ""
        return "; 1 record is lost" if self._lost == 1 else f"; {self._lost:,} records are lost"

    def close(self) -> None:
        """Try again to write the records in memory, and close the file."""
        with contextlib.suppress(OSError):
            self._write()
        if self._waiting:
            self._lost += len(self._waiting)
            self._warn(f"{self._path} is incomplete{self._describe_loss()}")
        with contextlib.suppress(OSError):
            self._file.close()


class StepLog(Generic[OneStep]):
    """A file with one record per step, which is created with its first record.

    keep: a function that returns True for a step whose record from an earlier start of the run is
    still valid; the others are removed. warn: called with a line when the disk refuses a record,
    which does not end the run. Attributes: records, those that are still valid. Used on rank 0
    only. Raises OSError.
    """

    def __init__(
        self,
        path: Path,
        kind: type[OneStep],
        keep: Callable[[int], bool],
        warn: Callable[[str], None],
    ) -> None:
        self._path = path
        self._warn = warn
        self._file: AppendOnlyFile | None = None
        self.records = [record for record in read_records(path, kind) if keep(record.step)]
        if path.is_file():
            replace_lines(path, self.records)

    def append(self, record: OneStep) -> None:
        """Write a record."""
        try:
            self._file = self._file or AppendOnlyFile(self._path, self._warn)
        except OSError as error:
            self._warn(f"{self._path} cannot be written: {error}; the run continues")
            return
        self._file.append(format_line(record).encode())

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
