"""The local folder of a data set: a data set at a URL, or one at a path with a cache, is fetched
into the cache before it is read."""

import contextlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from fastdeit.config.parse import refuse_credentials, require
from fastdeit.data.remote.addresses import OWN, find_place
from fastdeit.data.remote.journal import is_complete, is_whole
from fastdeit.data.remote.source import FetchStopped, Unreachable
from fastdeit.display.terminal import Terminal
from fastdeit.storage.atomic import atomic_open
from fastdeit.storage.urls import is_url


def local_folder(path: str, cache: str = "") -> Path:
    """Return the folder of a data set: for a URL its folder in the cache; for a path its copy in
    `cache`, if that is complete, else the path. Raises ValueError for a URL with credentials, which
    would be recorded."""
    if is_url(path):
        refuse_credentials("data_path", path)
        return find_place(path, cache)
    if cache:
        copy = find_place(os.path.abspath(path), cache)
        if is_complete(copy, os.path.abspath(path)):
            return copy
    return Path(path)


def fetch_folder(
    path: str,
    splits: Sequence[str],
    cache: str = "",
    *,
    uses_copy: bool = False,
    alone: bool = False,
    proceed: Callable[[], bool] = lambda: True,
) -> Path:
    """Return the folder of a data set; fetch one at a URL, or one at a path with a cache, into the
    cache, once on each machine. A collective where torch.distributed is initialised, unless
    `alone`.

    splits: their names, which may be patterns. uses_copy: a complete copy is used without a request
    to the source, as by a resumed run. proceed: as for `on_each_machine`; a fetch that was asked to
    stop ends without an error. Raises ValueError for a path or a cache that cannot be used, and
    FetchError.
    """
    if not (is_url(path) or cache):
        return Path(path)
    is_path = not is_url(path)
    path = os.path.abspath(path) if is_path else path
    require(not is_path or os.path.isdir(path), "data_path", path, "an existing folder or a URL")
    require(not is_path or not _is_inside(cache, path), "data_cache", cache, "outside --data-path")
    folder = find_place(path, cache) if is_path else local_folder(path, cache)

    def action(proceed: Callable[[], bool]) -> None:
        _stage(path, folder, splits, uses_copy, proceed)
        if is_path:
            _copy_tables(Path(path), folder, splits)

    if alone:
        action(proceed)
    else:
        # imports torch, which a command of one process can do without
        from fastdeit.distributed.collectives import on_each_machine

        on_each_machine(action, proceed)
    return folder


def _stage(
    path: str,
    folder: Path,
    splits: Sequence[str],
    uses_copy: bool,
    proceed: Callable[[], bool],
) -> None:
    """Fetch the files of a URL that a folder lacks; without a network, use a complete copy, with a
    note."""
    if uses_copy and is_whole(folder, path):
        return
    from fastdeit.data.remote.fetch import fetch  # libraries of the network

    terminal = Terminal(enabled=os.environ.get("RANK", "0") == "0")
    try:
        fetch(
            path,
            folder,
            patterns=splits,
            terminal=terminal,
            proceed=proceed,
            removes_stale=not is_url(path),
        )
    except FetchStopped as stopped:
        terminal.say(str(stopped))
    except Unreachable as error:
        if not is_complete(folder, path):
            raise
        terminal.say(f"note: {error}; the copy in {folder} is used")


def _is_inside(folder: str, above: str) -> bool:
    return Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(above))


def _copy_tables(source: Path, folder: Path, splits: Sequence[str]) -> None:
    """Copy the index of each split to a copy without one, so that equal images are not checked
    again."""
    from fastdeit.data.table import table_places  # pyarrow imports slowly

    for split in splits:
        copy = table_places(folder, split, folder / OWN)[0]
        tables = [table for table in table_places(source, split, None) if table.is_file()]
        if tables and not copy.exists():
            with contextlib.suppress(OSError), atomic_open(copy) as opened:
                opened.write(tables[0].read_bytes())
