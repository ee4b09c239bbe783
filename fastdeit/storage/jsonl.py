"""Files of JSON lines: one way to append to them and one way to read them.

A process that is killed while it writes leaves part of a line. Therefore an append begins on a new
line, and a reader skips every line that is not a whole JSON object.
"""

import contextlib
import dataclasses
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from pydantic import TypeAdapter

from fastdeit.storage.atomic import atomic_write_text

MAX_PENDING = 10_000
"""Records that wait in memory while the disk refuses them."""

Record = TypeVar("Record")


class StepRecord(Protocol):
    """A dataclass that says which optimizer step it is about."""

    @property
    def step(self) -> int: ...


OneStep = TypeVar("OneStep", bound=StepRecord)


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Return the JSON objects in a file, one per line; an empty list if there is no file."""
    objects = []
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            objects.append(value)
    return objects


def read_records(path: Path, kind: type[Record], strict: bool = False) -> list[Record]:
    """Return the lines of a file that are a record of the dataclass `kind`; skip all others.

    strict: raise ValueError for the first line that is no such record.
    """
    records = []
    adapter = TypeAdapter(kind)
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        try:
            records.append(adapter.validate_json(line, strict=True))
        except ValueError:
            if strict:
                got = line[:80].decode(errors="replace")
                raise ValueError(f"{path}: damaged line (got {got!r})") from None
    return records


def parse_record(text: str | bytes, kind: type[Record]) -> Record:
    """Return a record from its JSON text; unknown keys are ignored.

    Raises ValueError if a field is missing or is not of the type that `kind` declares.
    """
    return TypeAdapter(kind).validate_json(text, strict=True)


def format_line(record: Any) -> str:
    """Return a mapping or a dataclass as one line of JSON, with the newline."""
    value = record if isinstance(record, Mapping) else dataclasses.asdict(record)
    return json.dumps(value) + "\n"


def append_lines(path: Path, records: Iterable[Any]) -> None:
    """Append mappings or dataclasses, one per line. Raises OSError.

    One write holds them all, so that processes which share the file do not mix their lines.
    """
    lines = "".join(map(format_line, records)).encode()
    with path.open("ab+", buffering=0) as file:
        if _ends_in_mid_line(file):
            lines = b"\n" + lines
        file.write(lines)


def _ends_in_mid_line(file: Any) -> bool:
    if file.seek(0, os.SEEK_END) == 0:
        return False
    file.seek(-1, os.SEEK_END)
    return file.read(1) != b"\n"


def replace_lines(path: Path, records: Iterable[Any]) -> None:
    """Write a whole file of mappings or dataclasses atomically. Raises OSError."""
    atomic_write_text(path, "".join(map(format_line, records)))


class AppendOnlyFile:
    """A file to which records are appended, each whole or not at all.

    What the disk refuses waits in memory (the newest `MAX_PENDING` records) and is written with the
    next record that the disk accepts. warn: called when refusals begin and end, and with the number
    of records that were lost. Raises OSError if the file cannot be created.
    """

    def __init__(self, path: Path, warn: Callable[[str], None]) -> None:
        self._path = path
        self._warn = warn
        self._file = path.open("ab", buffering=0)
        self._waiting: deque[bytes] = deque()
        self._torn: int | None = None
        """Offset of a record of which only a part was written."""
        self._lost = 0
        self._refused = False

    def append(self, record: bytes) -> None:
        """Write a record, or keep it in memory if the disk refuses."""
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
            rest = memoryview(self._waiting[0])
            while rest:
                rest = rest[self._file.write(rest) :]
            self._torn = None
            self._waiting.popleft()

    def _describe_loss(self) -> str:
        return f"; {self._lost} records are lost" if self._lost else ""

    def close(self) -> None:
        """Try a last time to write what is in memory."""
        with contextlib.suppress(OSError):
            self._write()
        if self._waiting:
            self._lost += len(self._waiting)
            self._warn(f"{self._path} is incomplete{self._describe_loss()}")
        with contextlib.suppress(OSError):
            self._file.close()


class StepLog(Generic[OneStep]):
    """A file with one record per step, which is created with its first record.

    keep: takes a step, returns True if its record from an earlier start of the run is to stay.
    warn: called when the disk refuses, which does not end the run. Attributes: records, those that
    stayed. Use on rank 0 only. Raises OSError.
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
