"""The transfer of one file: its blocks are received by several threads and verified; then the file
gets its name."""

import hashlib
import os
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fastdeit.data.remote.journal import Journal
from fastdeit.data.remote.parts import BLOCK, Part
from fastdeit.data.remote.retries import next_wait
from fastdeit.data.remote.source import (
    Answer,
    Changed,
    FetchError,
    FetchStopped,
    RemoteFile,
    Source,
    Transient,
)

_MOST_RESTARTS = 3
_HASHED = 1 << 20  # bytes at once


class _RangeIgnored(Exception):
    """The error of a source that sends the whole file in place of a range."""


@dataclass(frozen=True, eq=False)
class _Round:
    """One version of the source's file, and the blocks in which it is received."""

    file: RemoteFile
    part: Part
    size: int
    """The bytes of a block."""

    @property
    def count(self) -> int:
        return -(-self.file.size // self.size)

    def bounds(self, block: int) -> tuple[int, int]:
        """Return the offsets of the first byte of a block and of the first byte after it."""
        return block * self.size, min((block + 1) * self.size, self.file.size)


@dataclass(frozen=True)
class Block:
    """A block of a file, which one thread receives."""

    round: _Round
    number: int


class Transfer:
    """A file that is fetched into a folder.

    A source that ignores ranges sends the whole file as one block. When the source changes the
    file, a new round begins: blocks of two versions are never mixed. count: called with the number
    of bytes that have arrived; below 0, of bytes that are dropped. Methods raise FetchError,
    OSError.
    """

    def __init__(
        self,
        source: Source,
        file: RemoteFile,
        folder: Path,
        journal: Journal,
        count: Callable[[int], None],
        stop: threading.Event,
    ) -> None:
        self._source = source
        self._folder = folder
        self._journal = journal
        self._count = count
        self._stop = stop
        self._lock = threading.RLock()
        self._restarts = 0
        self._mismatches = 0
        self._counted = 0
        self._begin(file, BLOCK)

    def _begin(self, file: RemoteFile, size: int) -> None:
        """Begin a round with the blocks that are missing."""
        part = Part(self._folder, file, size)
        self._round = _Round(file, part, size)
        self._pending = deque(sorted(set(range(self._round.count)) - part.done))
        self._left = len(self._pending)
        for block in part.done:
            start, end = self._round.bounds(block)
            self._report(end - start)

    def _report(self, size: int) -> None:
        self._counted += size
        self._count(size)

    def take(self) -> Block | None:
        """Return the next block that no thread receives yet."""
        with self._lock:
            return Block(self._round, self._pending.popleft()) if self._pending else None

    def receive(self, block: Block) -> bool:
        """Receive a block, or begin a new round if the source has changed the file; return True if
        no block is left to receive."""
        try:
            self._receive(block.round, *block.round.bounds(block.number))
        except Changed:
            return self._restart(block.round)
        except _RangeIgnored:
            return self._restart(block.round, is_whole=True)
        return self._record(block)

    def _receive(self, current: _Round, start: int, end: int) -> None:
        """Receive the bytes from `start` up to, and without, `end`; after a fault, continue at the
        byte where it happened."""
        position = reached = before = start
        failures = 0
        while position < end:
            try:
                with self._source.open(current.file, position, end) as answer:
                    _check_answer(answer, current.file, (start, position, end))
                    position = answer.start
                    for chunk in answer.chunks:
                        position = self._store(current, position, chunk, end)
                        self._report_new(current, position - reached)
                        reached = max(reached, position)
                if position < end:
                    raise Transient(f"it ends after {position - start:,} of {end - start:,} bytes")
            except Transient as fault:
                failures = 1 if reached > before else failures + 1
                before = reached
                self._wait(next_wait(fault, failures, current.file.address))

    def _store(self, current: _Round, position: int, chunk: bytes, end: int) -> int:
        """Write a chunk; return the offset after it."""
        if position + len(chunk) > end:
            raise Changed
        with self._lock:
            if self._stop.is_set():
                raise FetchStopped(f"{current.file.address}: stopped")
            if current is not self._round:
                raise Changed
            current.part.write(position, chunk)
        return position + len(chunk)

    def _report_new(self, current: _Round, size: int) -> None:
        with self._lock:
            if current is self._round and size > 0:
                self._report(size)

    def _wait(self, seconds: float) -> None:
        if self._stop.wait(seconds):
            raise FetchStopped("stopped")

    def _record(self, block: Block) -> bool:
        with self._lock:
            if block.round is not self._round:
                return False
            if block.round.count > 1:
                block.round.part.record(block.number)
            self._left -= 1
            return self._left == 0

    def _restart(self, failed: _Round, is_whole: bool = False) -> bool:
        """Begin a new round, with the file that the source has now, unless another thread has."""
        # outside the lock: the source may be slow
        file = failed.file if is_whole else self._describe(failed.file)
        with self._lock:
            if failed is not self._round:
                return False
            self._restarts += 1
            if self._restarts > _MOST_RESTARTS:
                raise FetchError(f"{failed.file.address}: the source changes it again and again")
            failed.part.close()
            self._report(-self._counted)
            self._begin(file, max(1, file.size) if is_whole else BLOCK)
            return self._left == 0

    def _describe(self, file: RemoteFile) -> RemoteFile:
        """Return the file that the source has now."""
        failures = 0
        while True:
            try:
                return self._source.describe(file)
            except Transient as fault:
                failures += 1
                self._wait(next_wait(fault, failures, file.address))

    def finish(self) -> bool:
        """Verify the file, record it, and give it its name. Return False if a new round begins:
        then call this again after its last block."""
        current = self._round
        current.part.sync()
        while not self._is_right(current):
            if not self._restart(current):
                return False
            current = self._round
        current.part.close()
        place = self._folder / current.file.name
        if current.file.mtime_ns:
            os.utime(current.part.path, ns=(current.file.mtime_ns, current.file.mtime_ns))
        # first the record: a file without one would be seen as one of the user
        self._journal.add(current.file, current.part.path)
        current.part.move_to(place)
        return True

    def _is_right(self, current: _Round) -> bool:
        """Return True if nothing shows that the content differs from that of the source."""
        file = current.file
        if file.checksum:
            found = hash_content(current.part.path, file)
            if found == file.checksum:
                return True
            if self._source.has_checksum(file):
                current.part.forget()
                self._mismatches += 1
                if self._mismatches > 1:
                    raise FetchError(f"{file.address}: must be {file.checksum} (got {found})")
                return False
        return self._describe(file).holds_same(file)


def _check_answer(answer: Answer, file: RemoteFile, asked: tuple[int, int, int]) -> None:
    """Raise Changed or _RangeIgnored for an answer with other bytes than the requested ones.

    asked: offsets of the block's first byte, of the first missing byte, and of the byte after the
    block.
    """
    start, position, end = asked
    if answer.version != file.version or answer.size not in (None, file.size):
        raise Changed
    # a source without ranges repeats a block that is the whole file from its first byte
    begins_right = answer.start == position or answer.start == start == 0
    if not begins_right or answer.end > end:
        raise _RangeIgnored


def hash_content(path: Path, file: RemoteFile) -> str:
    """Return the checksum of a local file, of the same kind as that of `file`. Raises OSError."""
    kind = file.checksum.partition(":")[0]
    digest = hashlib.new("sha1" if kind == "git" else kind, usedforsecurity=False)
    if kind == "git":
        digest.update(b"blob %d\0" % path.stat().st_size)
    with path.open("rb") as opened:
        while chunk := opened.read(_HASHED):
            digest.update(chunk)
    return f"{kind}:{digest.hexdigest()}"
