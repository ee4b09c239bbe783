"""`fastdeit cache ACTION`: record a teacher's output; merge, describe and verify recordings.

fastdeit cache build  [train's flags] -o CACHE [--epochs 300|0-299] [--kind hard|topk] [--k 100]
                      [--part 1/1]
fastdeit cache merge  CACHE CACHE ... -o CACHE
fastdeit cache info   CACHE
fastdeit cache verify CACHE
fastdeit cache sample CACHE [train's flags] [--number 256]
On many GPUs: deepspeed --no_local_rank --module fastdeit cache build ...
"""

import argparse
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.filesize import decimal
from rich.table import Table

from fastdeit.commands.cache.record import build, find_spans
from fastdeit.commands.cache.sample import sample
from fastdeit.commands.errors import one_line_errors
from fastdeit.config.parse import require_value
from fastdeit.display.terminal import Terminal
from fastdeit.storage.jsonl import append_lines, read_json_lines
from fastdeit.teacher_cache.format import CacheError, list_differences
from fastdeit.teacher_cache.reader import BAD_IMAGES, Cache
from fastdeit.teacher_cache.tail import kept_share, read_some_records
from fastdeit.teacher_cache.writer import CacheWriter, create_cache


def cache_command(argv: Sequence[str]) -> int:
    """Run `fastdeit cache`; return its exit code.

    1: `verify` found damage, or a recording ended early. 2: a command line, settings, a data set or
    a cache that cannot be used.
    """
    action = argv[0] if argv else ""
    if action in ("-h", "--help"):
        Terminal().say(__doc__ or "")
        return 0
    with one_line_errors():
        require_value(action in ACTIONS, "cache ACTION", action, f"one of {', '.join(ACTIONS)}")
        return ACTIONS[action](argv[1:])


def make_merge_parser() -> argparse.ArgumentParser:
    """Return the parser of `merge`."""
    parser = _start_parser("merge")
    parser.add_argument("cache", nargs="+", type=Path, help="recordings of the same samples")
    output = "the cache's folder; it may be one of those to be merged"
    parser.add_argument("-o", "--output", required=True, type=Path, help=output)
    return parser


def make_folder_parser(action: str) -> argparse.ArgumentParser:
    """Return the parser of an action that takes a cache's folder alone: `info` or `verify`."""
    parser = _start_parser(action)
    parser.add_argument("cache", type=Path, help="the cache's folder")
    return parser


def _start_parser(action: str) -> argparse.ArgumentParser:
    prog = f"fastdeit cache {action}"
    description = ACTIONS[action].__doc__
    return argparse.ArgumentParser(prog=prog, description=description, allow_abbrev=False)


def merge(argv: Sequence[str]) -> int:
    """merge recordings of the same samples by the same teacher into one cache"""
    parsed = make_merge_parser().parse_args(list(argv))
    sources = [Cache(folder) for folder in parsed.cache]
    _check_same_origin(sources)
    create_cache(parsed.output, sources[0].manifest)
    writer = CacheWriter(parsed.output)
    writer.reserve(0, max(source.coverage().size for source in sources) + 1)
    copied, present, damaged = np.sum([_copy(source, writer) for source in sources], axis=0)
    writer.close()
    Terminal().say(
        f"{parsed.output}: {copied} chunks copied, {present} were present already, "
        f"{damaged} damaged ones skipped"
    )
    return 0


def _check_same_origin(sources: Sequence[Cache]) -> None:
    """Raise CacheError unless all were recorded from the same samples by the same teacher."""
    first = sources[0]
    for source in sources[1:]:
        theirs = asdict(source.manifest) | {"versions": first.manifest.versions}
        lines = list_differences(asdict(first.manifest), theirs)
        if lines:
            raise CacheError(f"{source.folder} and {first.folder} differ: {'; '.join(lines)}")


def _copy(source: Cache, writer: CacheWriter) -> tuple[int, int, int]:
    """Copy the chunks that the target lacks; return the numbers of copied chunks, of those that
    were present, and of damaged ones."""
    copied = present = damaged = 0
    target = Cache(writer.folder)
    for epoch, recorded in enumerate(source.coverage()):
        chunks = np.flatnonzero(recorded).tolist()
        missing = [chunk for chunk in chunks if target.find_fault(epoch, chunk) is not None]
        good = [chunk for chunk in missing if source.find_fault(epoch, chunk) is None]
        writer.copy(source, epoch, good)
        copied += len(good)
        present += len(chunks) - len(missing)
        damaged += len(missing) - len(good)
    _copy_bad_images(source.folder, writer.folder)
    return copied, present, damaged


def _copy_bad_images(source: Path, target: Path) -> None:
    bad_images = source / BAD_IMAGES
    if bad_images.is_file() and source.resolve() != target.resolve():
        append_lines(target / BAD_IMAGES, read_json_lines(bad_images))


def info(argv: Sequence[str]) -> int:
    """print what a cache holds, and what it was made from"""
    cache = _open_cache("info", argv)
    manifest = cache.manifest
    table = Table("cache", str(cache.folder))
    table.add_row("kind", manifest.description)
    table.add_row("records", _describe_size(cache))
    for tau in dict.fromkeys(manifest.taus):
        table.add_row(f"probability kept at tau {tau:g}", _describe_share(cache, tau))
    coverage = cache.coverage()
    table.add_row("epochs, whole", _join_spans(np.flatnonzero(coverage.all(1))) or "none")
    begun = np.flatnonzero(coverage.any(1) & ~coverage.all(1))
    shares = [f"{epoch} ({coverage[epoch].mean():.0%})" for epoch in begun]
    table.add_row("epochs, in part", ", ".join(shares) or "none")
    for name, value in _flatten(manifest.facts | {"versions": manifest.versions}):
        table.add_row(name, value)
    Terminal().show(table)
    return 0


def _describe_size(cache: Cache) -> str:
    size = sum(path.stat().st_blocks * 512 for path in cache.folder.iterdir())
    records = f"{cache.manifest.samples:,} per epoch of {cache.record_bytes} bytes"
    return f"{records}; {decimal(size)} on the disk"


def _describe_share(cache: Cache, tau: float) -> str:
    """Return, as text, the share of the teacher's probability that the recorded classes have."""
    manifest = cache.manifest
    records = read_some_records(cache)
    if not len(records):
        return "nothing is recorded yet"
    share = kept_share(records, manifest, tau).mean()
    others = manifest.num_classes - manifest.k
    rest = f"; the other {others:,} classes share the rest evenly" if others else ""
    return f"{100 * share:.2f} %, mean of {len(records):,} samples{rest}"


def _open_cache(action: str, argv: Sequence[str]) -> Cache:
    return Cache(make_folder_parser(action).parse_args(list(argv)).cache)


def _flatten(facts: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    """Yield the values of nested dictionaries by dotted name."""
    for name, value in facts.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", str(value)


def _join_spans(numbers: np.ndarray) -> str:
    """Return ascending numbers as text: 0-4, 7."""
    parts = []
    for first, end in find_spans(numbers.tolist()):
        parts.append(f"{first}-{end - 1}" if end - first > 1 else f"{first}")
    return ", ".join(parts)


def verify(argv: Sequence[str]) -> int:
    """check every checksum; exit code 1 if one is wrong"""
    cache = _open_cache("verify", argv)
    recorded = np.argwhere(cache.coverage()).tolist()
    damaged = 0
    terminal = Terminal()
    for epoch, chunk in recorded:
        fault = cache.find_fault(epoch, chunk)
        if fault is not None:
            damaged += 1
            terminal.say(fault)
    terminal.say(f"{cache.folder}: {len(recorded)} chunks recorded, {damaged} damaged")
    return 1 if damaged else 0


ACTIONS: dict[str, Callable[[Sequence[str]], int]] = {
    action.__name__: action for action in (build, merge, info, verify, sample)
}
