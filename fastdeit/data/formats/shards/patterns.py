"""The files of a split's shards, by name or by pattern."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from fastdeit.data.formats.file_names import is_litter
from fastdeit.data.formats.listing import DataError

MAX_EXPANSION = 100_000
"""The largest number of names that a pattern may have."""


def expand_pattern(root: Path, pattern: str) -> tuple[Path, ...]:
    """Return the files of a pattern below root, sorted: `{000..127}` and `{a,b}` are replaced, then
    `*`, `?` and `[...]` matched. If the pattern is the name of a file, it is that file alone.

    Raises DataError for a file that braces name and that does not exist, and if nothing matches.
    """
    if (root / pattern).is_file():
        return (root / pattern,)
    files: list[Path] = []
    for name in expand_braces(pattern):
        if re.search(r"[*?\[]", name):
            found = (path for path in root.glob(name) if path.is_file())
            files += (path for path in found if not is_litter(os.path.relpath(path, root)))
        elif not (root / name).is_file():
            raise DataError(f"{root / name}: no such file; the pattern {pattern!r} names it")
        else:
            files.append(root / name)
    if not files:
        raise DataError(
            f"{root}: nothing matches {pattern!r}; it must be a name or a pattern of tar files "
            "below this folder"
        )
    return tuple(sorted(set(files)))


def expand_braces(pattern: str) -> list[str]:
    """Return the names of a pattern, in which `{000..127}` and `{a,b}` are replaced, also nested.

    Raises DataError for a falling range, and for more than MAX_EXPANSION names.
    """
    found = re.search(r"\{(?:([0-9]+)\.\.([0-9]+)|([^{}]*,[^{}]*))\}", pattern)
    if not found:
        return [pattern]
    first, last, names = found.groups()
    if names is None and not 0 <= int(last) - int(first) < MAX_EXPANSION:
        raise DataError(
            f"{pattern!r}: {first}..{last} must be a rising range of at most {MAX_EXPANSION} "
            "numbers"
        )
    if names:
        inner = names.split(",")
    else:
        inner = [f"{number:0{len(first)}}" for number in range(int(first), int(last) + 1)]
    before, after = pattern[: found.start()], pattern[found.end() :]
    expanded: list[str] = []
    for text in inner:
        expanded += expand_braces(before + text + after)
        if len(expanded) > MAX_EXPANSION:
            raise DataError(f"{pattern!r}: must be a pattern of at most {MAX_EXPANSION} names")
    return expanded


def refuse_compressed(shards: Sequence[Path]) -> None:
    """Raise DataError for a shard that is not a regular file or not called .tar."""
    for shard in shards:
        if not shard.is_file():
            raise DataError(f"{shard}: is no regular file; a shard must be a plain .tar file")
        if shard.suffix.lower() != ".tar":
            raise DataError(
                f"{shard}: a compressed shard cannot be read in any order; unpack it to a plain "
                ".tar file first"
            )
