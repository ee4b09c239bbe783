"""The local folder of a data set at a URL: fetched into a cache before it is read."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from fastdeit.config.parse import refuse_credentials
from fastdeit.data.remote.addresses import find_place
from fastdeit.data.remote.journal import is_complete
from fastdeit.data.remote.source import FetchStopped, Unreachable
from fastdeit.display.terminal import Terminal
from fastdeit.storage.urls import is_url


def local_folder(path: str, cache: str = "") -> Path:
    """Return the folder of a data set, which at a URL is its place in the cache. Raises
    ValueError for a URL with credentials, which would be recorded."""
    if not is_url(path):
        return Path(path)
    refuse_credentials("data_path", path)
    return find_place(path, cache)


def fetch_folder(
    path: str,
    splits: Sequence[str],
    cache: str = "",
    *,
    uses_copy: bool = False,
    alone: bool = False,
    proceed: Callable[[], bool] = lambda: True,
) -> Path:
    """Return the folder of a data set; one at a URL is fetched into the cache, once on each
    machine. A collective where torch.distributed is initialised, unless `alone`.

    splits: their names, which may be patterns. uses_copy: a complete copy is used without a look at
    the source, as a run does that resumes. proceed: as `on_each_machine` takes it; a fetch that was
    asked to stop ends without an error. Raises ValueError.
    """
    folder = local_folder(path, cache)
    if not is_url(path):
        return folder

    def action(proceed: Callable[[], bool]) -> None:
        _stage(path, folder, splits, uses_copy, proceed)

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
    """Fetch what a folder lacks of a URL; without a network, a complete copy is used, with a
    note."""
    if uses_copy and is_complete(folder, path):
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
        )
    except FetchStopped as stopped:
        terminal.say(str(stopped))
    except Unreachable as error:
        if not is_complete(folder, path):
            raise
        terminal.say(f"note: {error}; the copy in {folder} is used")
