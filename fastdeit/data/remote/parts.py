"""Files that have not arrived completely: their blocks on the disk, and the file of a source that
these belong to."""

import contextlib
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from fastdeit.data.remote.addresses import OWN
from fastdeit.data.remote.source import RemoteFile
from fastdeit.storage.atomic import atomic_write_text, open_no_link
from fastdeit.storage.json_values import read_json_file
from fastdeit.storage.jsonl import format_line

BLOCK = 16 << 20
"""The bytes of a block, which is fetched at once, and recorded when it is on the disk."""


class Part:
    """A file that has not arrived completely, in DIR/.fastdeit/parts; its blocks are used only if
    the source still has the same file.

    block: bytes of a block. Attributes: path; done, the numbers of the blocks that are on the disk.
    Raises OSError if it cannot be created.
    """

    def __init__(self, folder: Path, file: RemoteFile, block: int) -> None:
        self.path = _find_part(folder, file)
        self._state = self.path.with_suffix(".json")
        self._identity = _identify(file, block)
        self.done: set[int] = self._read_done(file)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = open_no_link(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if not self.done:
                os.ftruncate(self._descriptor, 0)
            os.ftruncate(self._descriptor, file.size)
        except OSError:
            self.close()
            raise

    def _read_done(self, file: RemoteFile) -> set[int]:
        """Return the blocks of an earlier fetch of the same file."""
        try:
            state = read_json_file(self._state)
            is_same = state["file"] == self._identity and self.path.stat().st_size == file.size
            blocks = {int(block) for block in state["done"]} if is_same else set()
        except (OSError, ValueError, KeyError, TypeError):
            return set()
        # without either, nothing shows that the file is still the same
        return blocks if file.version or file.checksum else set()

    def write(self, offset: int, data: bytes) -> None:
        """Write bytes at an offset. Raises OSError."""
        rest = memoryview(data)
        while rest:
            written = os.pwrite(self._descriptor, rest, offset)
            offset += written
            rest = rest[written:]

    def record(self, block: int) -> None:
        """Wait until a block is on the disk, and record it. Raises OSError."""
        os.fdatasync(self._descriptor)
        self.done.add(block)
        state = {"file": self._identity, "done": sorted(self.done)}
        atomic_write_text(self._state, format_line(state))

    def forget(self) -> None:
        """Remove the record of the blocks, so that the next fetch begins with none."""
        self._state.unlink(missing_ok=True)

    def sync(self) -> None:
        os.fsync(self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)

    def move_to(self, place: Path) -> None:
        """Give the complete file its name. Raises OSError."""
        place.parent.mkdir(parents=True, exist_ok=True)
        os.replace(self.path, place)
        self.forget()


def _identify(file: RemoteFile, block: int) -> dict[str, object]:
    facts = {"size": file.size, "version": file.version, "checksum": file.checksum}
    return {"name": os.fsencode(file.name).hex(), "block": block} | facts


def _find_part(folder: Path, file: RemoteFile) -> Path:
    key = hashlib.sha256(os.fsencode(file.name)).hexdigest()[:24]
    return folder / OWN / "parts" / key


def count_arrived(folder: Path, files: Iterable[RemoteFile]) -> int:
    """Return the bytes on the disk of files that have not arrived completely."""
    size = 0
    for file in files:
        with contextlib.suppress(OSError):
            size += _find_part(folder, file).stat().st_blocks * 512
    return size
