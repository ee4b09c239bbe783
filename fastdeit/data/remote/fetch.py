"""A whole fetch: the files of a URL, those that a folder lacks, the room for them, the threads."""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import filesize

from fastdeit.data.remote.addresses import check_case, check_names
from fastdeit.data.remote.journal import (
    Journal,
    is_complete,
    lock_folder,
    mark_complete,
    mark_incomplete,
)
from fastdeit.data.remote.parts import count_arrived
from fastdeit.data.remote.pool import TransferPool
from fastdeit.data.remote.source import NO_ROOM, FetchError, FetchStopped, RemoteFile, Source
from fastdeit.data.remote.sources.folder import FolderSource
from fastdeit.data.remote.sources.store import StoreSource
from fastdeit.data.remote.sources.web import WebSource
from fastdeit.data.remote.transfer import hash_content
from fastdeit.display.progress import ProgressBar, TimeLeft, track
from fastdeit.display.terminal import Terminal
from fastdeit.display.text import printable
from fastdeit.storage.atomic import sync
from fastdeit.storage.free_space import find_free_bytes
from fastdeit.storage.urls import hide_credentials, is_url, is_web

WORKERS = 8
"""The default number of threads that fetch."""
_POLL_S = 0.5


@dataclass(frozen=True)
class Listing:
    """The files of a URL, and those of them that a folder lacks."""

    url: str
    folder: Path
    files: Sequence[RemoteFile]
    missing: Sequence[RemoteFile]
    found: Sequence[RemoteFile]
    """The files that were in the folder with the same content, but not in its journal."""

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def size_missing(self) -> int:
        return sum(file.size for file in self.missing)

    def describe(self) -> str:
        """Return one line: the files of the URL, those to fetch, and the free room on the disk."""
        there = f"{self.url}: {_count(self.files)}, {filesize.decimal(self.size)}"
        if not self.missing:
            return f"{there}; all of them are in {printable(self.folder)}"
        count = f"{_count(self.missing)}, " if len(self.missing) < len(self.files) else ""
        room = f"{filesize.decimal(find_free_bytes(self.folder))} free in {printable(self.folder)}"
        return f"{there}; to fetch: {count}{filesize.decimal(self.size_missing)}; {room}"


def _count(files: Sequence[RemoteFile]) -> str:
    return "1 file" if len(files) == 1 else f"{len(files):,} files"


def fetch(
    url: str,
    folder: Path,
    *,
    workers: int = WORKERS,
    patterns: Iterable[str] = (),
    terminal: Terminal,
    proceed: Callable[[], bool] = lambda: True,
    removes_stale: bool = False,
) -> Listing:
    """Fetch the files of a URL that a folder lacks; return the listing from before the fetch.

    patterns: names in the URL, where it is a folder that cannot be listed. proceed: called twice a
    second; False stops the fetch, which the next fetch continues. removes_stale: remove files that
    were fetched and that the URL does not have any more. Raises FetchError, FetchStopped.
    """
    with open_source(url) as source, lock_folder(folder, terminal.say, proceed):
        journal = Journal(folder, terminal.say)
        listing = compare(source, url, journal, patterns)
        check_case(listing.files, folder)
        terminal.say(listing.describe())
        _require_room(listing)
        with _local_errors(folder):
            _fill(source, listing, journal, workers, terminal, proceed)
            if removes_stale:
                _remove_stale(listing, journal)
    note_stale(listing, journal, terminal)
    return listing


@contextlib.contextmanager
def open_source(url: str) -> Iterator[Source]:
    """Open the source of a URL or a folder. Raises FetchError."""
    if not is_url(url) and not Path(url).is_dir():
        raise FetchError(
            f"URL must be s3://, gs://, hf://, https:// or another of fsspec, or an existing "
            f"folder (got {url!r})"
        )
    source = _choose_source(url)
    try:
        yield source
    finally:
        source.close()


def _choose_source(url: str) -> Source:
    if not is_url(url):
        return FolderSource(Path(os.path.abspath(url)))
    return WebSource(url) if is_web(url) else StoreSource(url)


def compare(source: Source, url: str, journal: Journal, patterns: Iterable[str] = ()) -> Listing:
    """Compare the files of a URL with those of a journal's folder. Raises FetchError.

    A file without a record is used if its checksum is that of the source; any other is refused, as
    it would be overwritten.
    """
    shown = hide_credentials(url)
    files = source.list_files(patterns)
    check_names([file.name for file in files], shown)
    unknown = next((file for file in files if file.size < 0), None)
    if unknown is not None:
        raise FetchError(f"{unknown.address}: its size is not known")
    folder = journal.folder
    missing = [file for file in files if not _has(journal, file)]
    lost = [file for file in missing if (folder / file.name).exists() and not _owns(journal, file)]
    found = {file for file in track(lost, len(lost), "comparing") if _is_same(folder, file)}
    others = [file for file in lost if file not in found]
    if others:
        raise FetchError(_refuse(journal, others[0]))
    missing = [file for file in missing if file not in found]
    return Listing(shown, folder, files, missing, sorted(found, key=lambda file: file.name))


def _has(journal: Journal, file: RemoteFile) -> bool:
    """Return True if a file was fetched, and neither it nor the source has changed since."""
    entry = journal.entries.get(file.name)
    if entry is None or not entry.is_at(journal.folder / file.name):
        return False
    is_same_place = entry.address == file.address or bool(file.checksum and entry.checksum)
    return is_same_place and entry.file.holds_same(file)


def _owns(journal: Journal, file: RemoteFile) -> bool:
    """Return True if a file was fetched from the same address."""
    entry = journal.entries.get(file.name)
    return entry is not None and entry.address == file.address


def _is_same(folder: Path, file: RemoteFile) -> bool:
    path = folder / file.name
    if not (file.checksum and path.is_file() and path.stat().st_size == file.size):
        return False
    return hash_content(path, file) == file.checksum


def _refuse(journal: Journal, file: RemoteFile) -> str:
    path = printable(journal.folder / file.name)
    entry = journal.entries.get(file.name)
    fact = f"was fetched from {entry.address}" if entry else "exists, and was not fetched"
    return f"{path}: {fact}; name another folder, or remove it"


def _require_room(listing: Listing) -> None:
    """Raise FetchError if the disk has less room than the missing files need."""
    needed = listing.size_missing - count_arrived(listing.folder, listing.missing)
    room = find_free_bytes(listing.folder)
    if needed > room:
        shown = f"{filesize.decimal(needed)} to fetch, {filesize.decimal(room)} free"
        advice = "`fastdeit pack` writes a data set with smaller images"
        raise FetchError(f"{listing.folder}: the disk has too little room ({shown}); {advice}")


@contextlib.contextmanager
def _local_errors(folder: Path) -> Iterator[None]:
    """Raise FetchError in place of the disk's errors."""
    try:
        yield
    except OSError as error:
        reason = "no room is left" if error.errno in NO_ROOM else str(error)
        raise FetchError(f"{folder}: {reason}; what has arrived stays") from None


def _fill(
    source: Source,
    listing: Listing,
    journal: Journal,
    workers: int,
    terminal: Terminal,
    proceed: Callable[[], bool],
) -> None:
    """Fetch the missing files, and record those that were found."""
    folder = listing.folder
    if listing.missing:
        mark_incomplete(folder, listing.url)
    journal.open()
    with contextlib.closing(journal):
        for file in listing.found:
            journal.add(file, folder / file.name)
        if listing.missing:
            pool = TransferPool(source, listing.missing, folder, journal, workers)
            _watch(pool, listing, terminal, proceed)
    _sync_folders(listing)
    if listing.missing or not is_complete(folder, listing.url):
        mark_complete(folder, listing.url, len(listing.files), listing.size)


def _watch(
    pool: TransferPool, listing: Listing, terminal: Terminal, proceed: Callable[[], bool]
) -> None:
    """Wait for the threads, and show their progress. Raises the error of a thread."""
    total = listing.size_missing
    bar = ProgressBar(terminal, total, "fetching")
    left = TimeLeft(total)
    bar.start()
    pool.start()
    try:
        while not pool.wait(_POLL_S):
            if not proceed():
                raise FetchStopped(f"{listing.url}: stopped; the next fetch continues")
            _show(bar, left, pool.received, total)
        _show(bar, left, total, total)
    finally:
        pool.stop()
        bar.stop()


def _show(bar: ProgressBar, left: TimeLeft, done: int, total: int) -> None:
    facts = f"{filesize.decimal(done)} of {filesize.decimal(total)}"
    time_left = left.describe(done)
    line = f"fetched {facts}{f', {time_left} left' if time_left else ''}"
    bar.update(done, facts, line=line)


def _sync_folders(listing: Listing) -> None:
    """Wait until the names of the new files are on the disk."""
    for folder in {(listing.folder / file.name).parent for file in listing.missing}:
        sync(folder)


def note_stale(listing: Listing, journal: Journal, terminal: Terminal) -> None:
    """Name the files that came with an earlier fetch of the URL, which no longer has them."""
    stale = _list_stale(listing, journal)
    if stale:
        more = f" and {len(stale) - 1:,} more" if len(stale) > 1 else ""
        named = printable(stale[0])
        terminal.say(f"  note: {named}{more} is no longer at {listing.url}; it was not removed")


def _list_stale(listing: Listing, journal: Journal) -> list[Path]:
    names = {file.name for file in listing.files}
    base = listing.url.rstrip("/") + "/"
    entries = [entry for entry in journal.entries.values() if entry.address.startswith(base)]
    absent = [entry for entry in entries if entry.name not in names]
    # a folder may have other splits, too; only the requested ones were listed
    paths = [listing.folder / entry.name for entry in absent if not os.path.exists(entry.address)]
    return [path for path in paths if path.exists()]


def _remove_stale(listing: Listing, journal: Journal) -> None:
    """Remove the files that `note_stale` would name, and the folders that are then empty."""
    stale = _list_stale(listing, journal)
    for path in stale:
        path.unlink()
        with contextlib.suppress(OSError):  # not empty
            for parent in path.relative_to(listing.folder).parents[:-1]:
                (listing.folder / parent).rmdir()
    if stale:
        journal.forget(str(path.relative_to(listing.folder)) for path in stale)
