"""The local folder of a data set at a URL: fetched into a cache before it is read."""

from collections.abc import Callable, Sequence
from pathlib import Path

from fastdeit.config.parse import require
from fastdeit.data.remote.addresses import find_place, hide_credentials, is_url
from fastdeit.data.remote.fetch import WORKERS, fetch
from fastdeit.data.remote.journal import is_complete
from fastdeit.data.remote.source import Unreachable
from fastdeit.display.terminal import Terminal


def local_folder(path: str, cache: str = "") -> Path:
    """Return the folder of a data set, which at a URL is its place in the cache. Raises
    ValueError for a URL with credentials, which would be recorded."""
    if not is_url(path):
        return Path(path)
    shown = hide_credentials(path)
    allowed = "a URL without password and query; fastdeit fetch takes them, and then name its DIR"
    require(path == shown, "data_path", shown, allowed)
    return find_place(path, cache)


def stage(
    path: str,
    cache: str,
    patterns: Sequence[str],
    *,
    uses_copy: bool = False,
    terminal: Terminal,
    proceed: Callable[[], bool] = lambda: True,
) -> None:
    """Fetch a data set at a URL into the cache; do nothing for a local folder.

    patterns: names of splits, as WebDataset's braces. uses_copy: a complete copy is used without a
    look at the source, as a run does that resumes. Without a network, a complete copy is used, with
    a note. Raises ValueError, FetchStopped.
    """
    if not is_url(path):
        return
    folder = local_folder(path, cache)
    if uses_copy and is_complete(folder, path):
        return
    try:
        fetch(
            path,
            folder,
            workers=WORKERS,
            patterns=patterns,
            terminal=terminal,
            proceed=proceed,
        )
    except Unreachable as error:
        if not is_complete(folder, path):
            raise
        terminal.say(f"note: {error}; the copy in {folder} is used")
