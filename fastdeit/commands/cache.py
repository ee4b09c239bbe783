"""`fastdeit cache ACTION`: record the teacher's answers, join recordings, look into them.

fastdeit cache build  [train's flags] -o CACHE [--epochs 0-299] [--kind hard|topk] [--k 10] [--part 1/1]
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

import numpy as np
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from fastdeit.commands.cache_record import run_build, run_sample, runs
from fastdeit.commands.errors import one_line_errors
from fastdeit.teacher_cache.format import KINDS, CacheError, list_differences
from fastdeit.teacher_cache.reader import BAD_IMAGES, Cache
from fastdeit.teacher_cache.writer import CacheWriter, create_cache


def cache_command(argv: Sequence[str]) -> int:
    """0; 1 for damage that `verify` finds, or a recording that ended early; exit code 2 for what
    cannot be used or done."""
    action = argv[0] if argv else ""
    if action in ACTIONS:
        with one_line_errors():
            return ACTIONS[action](argv[1:])
    if action in ("-h", "--help"):
        print(__doc__)
        return 0
    with one_line_errors():
        raise ValueError(f"cache: got {action!r}, allowed are {', '.join(ACTIONS)}")


def _parser(described: Callable[..., int]) -> argparse.ArgumentParser:
    prog = f"fastdeit cache {described.__name__}"
    return argparse.ArgumentParser(prog=prog, description=described.__doc__, allow_abbrev=False)


def build(argv: Sequence[str]) -> int:
    """record the teacher's answers to the samples of a run with these flags; the same command goes
    on where it was stopped"""
    parser = _parser(build)
    parser.add_argument("-o", "--output", required=True, type=Path, help="the cache's folder")
    parser.add_argument(
        "--epochs", help="as 0-299 or 0-9,20; default: all of the recipe, or --cache-period of them"
    )
    parser.add_argument(
        "--kind", choices=KINDS, default="hard", help="hard: the class; topk: the largest logits"
    )
    parser.add_argument("--k", type=int, default=10, help="logits of a sample with --kind topk")
    parser.add_argument(
        "--part", default="1/1", help="3/8: this is the third of eight independent jobs"
    )
    asked, flags = parser.parse_known_args(list(argv))
    k = asked.k if asked.kind == "topk" else 1
    return run_build(
        flags, asked.output, kind=asked.kind, k=k, part_text=asked.part, epochs_text=asked.epochs
    )


def merge(argv: Sequence[str]) -> int:
    """join recordings of the same samples by the same teacher into one cache"""
    parser = _parser(merge)
    parser.add_argument("cache", nargs="+", type=Path)
    parser.add_argument(
        "-o",
        "--output",
        required=True,
        type=Path,
        help="the cache's folder; one of those to be joined, too",
    )
    asked = parser.parse_args(list(argv))
    sources = [Cache(folder) for folder in asked.cache]
    first = sources[0]
    for source in sources[1:]:
        lines = list_differences(
            asdict(first.manifest), asdict(source.manifest) | {"versions": first.manifest.versions}
        )
        if lines:
            raise CacheError(f"{source.folder} and {first.folder} differ: {'; '.join(lines)}")
    create_cache(asked.output, first.manifest)
    recorder = CacheWriter(asked.output)
    recorder.reserve(0, max(source.coverage().size for source in sources) + 1)
    counts = np.sum([_copy(source, recorder) for source in sources], axis=0)
    recorder.close()
    print(
        "{}: {} chunks copied, {} were there already, {} damaged ones left out".format(
            asked.output, *counts
        )
    )
    return 0


def _copy(source: Cache, recorder: CacheWriter) -> tuple[int, int, int]:
    """What `source` has and the target has not; chunks copied, there already, and damaged."""
    copied = there = damaged = 0
    target = Cache(recorder.folder)
    for epoch, chunk in np.argwhere(source.coverage()).tolist():
        if target.find_fault(epoch, chunk) is None:
            there += 1
        elif source.find_fault(epoch, chunk) is not None:
            damaged += 1
        else:
            recorder.copy(source, epoch, chunk)
            copied += 1
    bad = source.folder / BAD_IMAGES
    if bad.is_file() and source.folder.resolve() != recorder.folder.resolve():
        with (recorder.folder / BAD_IMAGES).open("ab") as file:
            file.write(b"\n" + bad.read_bytes())
    return copied, there, damaged


def info(argv: Sequence[str]) -> int:
    """what a cache holds, and what it was made of"""
    cache, console = _one_cache(info, argv), Console(highlight=False)
    manifest, coverage = cache.manifest, cache.coverage()
    size = sum(path.stat().st_blocks * 512 for path in cache.folder.iterdir())
    table = Table("cache", str(cache.folder))
    table.add_row("kind", manifest.description)
    table.add_row(
        "records",
        f"{manifest.samples:,} an epoch of {cache.record_bytes} bytes; {decimal(size)} on the disk",
    )
    table.add_row("epochs, whole", _spans(np.flatnonzero(coverage.all(1))) or "none")
    begun = np.flatnonzero(coverage.any(1) & ~coverage.all(1))
    table.add_row(
        "epochs, in part",
        ", ".join(f"{epoch} ({coverage[epoch].mean():.0%})" for epoch in begun) or "none",
    )
    for name, value in _flat(manifest.facts | {"versions": manifest.versions}):
        table.add_row(name, value)
    console.print(table)
    return 0


def _one_cache(described: Callable[..., int], argv: Sequence[str]) -> Cache:
    parser = _parser(described)
    parser.add_argument("cache", type=Path)
    return Cache(parser.parse_args(list(argv)).cache)


def _flat(facts: dict, path: str = "") -> Iterable[tuple[str, str]]:
    for name, value in facts.items():
        yield from (
            _flat(value, f"{path}{name}.")
            if isinstance(value, dict)
            else [(f"{path}{name}", str(value))]
        )


def _spans(numbers: np.ndarray) -> str:
    return ", ".join(
        f"{first}-{last - 1}" if last - first > 1 else f"{first}"
        for first, last in runs(numbers.tolist())
    )


def verify(argv: Sequence[str]) -> int:
    """check every checksum; exit code 1 if one is wrong"""
    cache = _one_cache(verify, argv)
    recorded = np.argwhere(cache.coverage()).tolist()
    faults = [
        fault for epoch, chunk in recorded if (fault := cache.find_fault(epoch, chunk)) is not None
    ]
    for fault in faults:
        print(fault)
    print(f"{cache.folder}: {len(recorded)} chunks recorded, {len(faults)} damaged")
    return 1 if faults else 0


def sample(argv: Sequence[str]) -> int:
    """ask the live teacher again about some samples, drawn at random, and tell how often it agrees"""
    parser = _parser(sample)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--number", type=int, default=256, help="samples")
    asked, flags = parser.parse_known_args(list(argv))
    return run_sample(flags, asked.cache, asked.number)


ACTIONS: dict[str, Callable[[Sequence[str]], int]] = {
    action.__name__: action for action in (build, merge, info, verify, sample)
}
