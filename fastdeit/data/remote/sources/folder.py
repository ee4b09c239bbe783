"""Files of a folder that this machine can read, such as one on a shared file system."""

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from fastdeit.data.formats.detect import find_split
from fastdeit.data.remote.addresses import OWN
from fastdeit.data.remote.source import Answer, Changed, FetchError, RemoteFile, Transient

_SMALL = 64 << 20
"""The largest size of a file beside the splits that may belong to them, as a list of classes."""


class FolderSource:
    """The files of a folder; links are followed. A file's version is its time of modification,
    which the copy has, too."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def list_files(self, patterns: Iterable[str]) -> list[RemoteFile]:
        """Return the files, sorted. patterns: names of splits; the files of these and the small
        files beside them are returned, or all files if there are no names. Raises FetchError."""
        tops = self._find_tops(patterns)
        try:
            files = sorted(_walk(self._root, tops))
            found = [self._describe(file) for file in files]
        except OSError as error:
            raise FetchError(f"{error.filename}: {error.strerror}") from None
        found = [file for file in found if tops is None or _is_needed(file, tops)]
        if not found:
            raise FetchError(f"{self._root}: there is no file")
        return found

    def _find_tops(self, splits: Iterable[str]) -> set[str] | None:
        """Return the names in the folder itself that hold the splits; None for all, if there is a
        list, whose files may be anywhere."""
        found = [find_split(self._root, split) for split in splits]
        if not found or any(split.is_list for split in found):
            return None
        paths = [path for split in found for path in split.paths]
        return {os.path.relpath(path, self._root).partition("/")[0] for path in paths}

    def _describe(self, path: str) -> RemoteFile:
        facts = os.stat(path)
        name = os.path.relpath(path, self._root)
        time = facts.st_mtime_ns
        return RemoteFile(name, path, facts.st_size, str(time), mtime_ns=time)

    def describe(self, file: RemoteFile) -> RemoteFile:
        with _errors(file):
            return self._describe(file.address)

    @contextlib.contextmanager
    def open(self, file: RemoteFile, start: int, end: int) -> Iterator[Answer]:
        with _errors(file), Path(file.address).open("rb") as opened:
            facts = os.fstat(opened.fileno())
            if (facts.st_size, str(facts.st_mtime_ns)) != (file.size, file.version):
                raise Changed
            opened.seek(start)
            data = opened.read(end - start)
        if len(data) != end - start:
            raise Changed
        # outside the block: faults of the disk that is written to are not faults of the source
        yield Answer(start, end, file.size, file.version, iter([data]))

    def has_checksum(self, file: RemoteFile) -> bool:
        return False

    def close(self) -> None: ...


def _walk(folder: Path | str, tops: set[str] | None, above: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield the paths of the files below a folder, without those of this program; skip a link to a
    folder above itself. tops: names of the folders that are entered; None: all."""
    above = (*above, os.path.realpath(folder))
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.is_dir():
                yield entry.path
            elif _is_entered(entry, tops, above):
                yield from _walk(entry.path, None, above)


def _is_entered(entry: os.DirEntry[str], tops: set[str] | None, above: tuple[str, ...]) -> bool:
    if entry.name == OWN or (tops is not None and entry.name not in tops):
        return False
    return not (entry.is_symlink() and os.path.realpath(entry.path) in above)


def _is_needed(file: RemoteFile, tops: set[str]) -> bool:
    top, _, below = file.name.partition("/")
    return bool(below) or top in tops or file.size <= _SMALL


@contextlib.contextmanager
def _errors(file: RemoteFile) -> Iterator[None]:
    """Raise FetchError for a file that is gone or that this user may not read, Transient for other
    faults of the file system."""
    try:
        yield
    except (FileNotFoundError, PermissionError) as error:
        raise FetchError(f"{file.address}: {error.strerror}") from None
    except OSError as error:
        raise Transient(str(error)) from None
