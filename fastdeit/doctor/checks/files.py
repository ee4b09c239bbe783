"""Checks of the file system below --output-dir, and of the speed of the disk with the images."""

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fastdeit.doctor.findings import GIB, MIB, Finding, Target, absent, fail, good, warn, warn_of
from fastdeit.doctor.images import NoImagesError, locate_images
from fastdeit.doctor.scratch import open_any_scratch, open_scratch
from fastdeit.storage.atomic import atomic_write_text, sync

_LITTLE = 10 * GIB
_NONE = GIB // 2
_SLOW_SYNC_S = 0.5
_WRITTEN = 64 * MIB
_MEASURE_S = 2.0
_MEAN_BYTES = 110_000
"""The mean bytes of an image of ImageNet."""
_READERS = 16
_PER_CORE = 1000
"""The images/s that one core decodes and augments (docs/throughput.md)."""


def check_output(target: Target) -> Finding:
    """Write a file below --output-dir, and check the free space."""
    scratch = Path(target.scratch)
    try:
        open_scratch(target)
        atomic_write_text(scratch / "whole", "text")
    except OSError as error:
        found = f"{scratch.parent} cannot be written: {error.strerror}"
        return fail(found, "set --output-dir to a folder that can be written")
    space = os.statvfs(scratch)
    free = space.f_frsize * space.f_bavail
    found = f"{target.output_dir}: {free / GIB:,.0f} GiB free"
    if free < _NONE:
        return fail(found, "free space: two checkpoints of DeiT-S alone have 0.7 GiB")
    if free < _LITTLE:
        return warn(found, "free space, or keep fewer checkpoints (--keep-checkpoints 2)")
    return good(found)


def check_locks(target: Target) -> Finding:
    """Lock a file twice: the second lock must be refused."""
    path = open_scratch(target) / "lock"
    with path.open("wb") as first, path.open("wb") as second:
        try:
            _lock(first.fileno())
        except OSError as error:
            found = f"no locks: {error.strerror}"
            return warn(
                found, "mount with locks (NFS 4, lustre -o flock): two runs can share a folder"
            )
        try:
            _lock(second.fileno())
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return good("a second lock is refused")
            raise
    return fail("two locks of one file at once", "mount without nolock or localflock")


def _lock(descriptor: int) -> None:
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def check_writes(target: Target) -> Finding:
    """Check what checkpoints need: renames that replace a file, hard links, a fast disk."""
    folder = open_scratch(target)
    path = folder / "renamed"
    path.write_text("old")
    began = time.monotonic()
    atomic_write_text(path, "new")
    seconds = time.monotonic() - began
    if path.read_text() != "new":
        return fail("a rename does not replace a file", "use another file system")
    faults = []
    if seconds > _SLOW_SYNC_S:
        slow = f"a file takes {seconds:.1f} s to reach the disk"
        faults.append((slow, "use a faster disk for --output-dir, or raise --save-steps"))
    linked = folder / "linked"
    linked.unlink(missing_ok=True)
    try:
        os.link(path, linked)
    except OSError as error:
        faults.append(
            (f"no hard links ({error.strerror})", "expect copies of the weights: more space")
        )
    return warn_of(f"a small file is on the disk after {seconds * 1e3:.0f} ms", faults)


def check_disk(target: Target) -> Finding:
    """Compare the speed at which images are read from the disk with that at which the cores decode
    them."""
    try:
        places = _locate(target)
    except NoImagesError as error:
        return absent(str(error))
    mean = sum(length for *_, length in places) / len(places)
    whole = _measure(_read_whole, _list_files(places), 1)
    scattered = _measure(_read_place, places, _READERS)
    images = scattered / mean
    needed = _PER_CORE * len(os.sched_getaffinity(0))
    found = (
        f"{whole / MIB:,.0f} MiB/s in order, {scattered / MIB:,.0f} MiB/s in random order by "
        f"{_READERS} threads: {images:,.0f} images/s of {mean / 1e3:.0f} kB"
    )
    if images < needed:
        short = f"{found}; the cores can decode about {needed:,}"
        return warn(short, "copy the images to a local disk, or pack them (fastdeit pack)")
    return good(found)


Place = tuple[str, int, int]
"""The file, the offset and the length of bytes."""


def _locate(target: Target) -> Sequence[Place]:
    """Return the places of some images of the data set; without a data set, places in a file that
    is written now. Raises NoImagesError."""
    if target.data_path:
        return locate_images(target.data_path, target.train_split)
    path = open_any_scratch(target) / "written"
    block = os.urandom(MIB)
    with path.open("wb") as file:
        for _ in range(_WRITTEN // MIB):
            file.write(block)
    sync(path)
    starts = range(0, _WRITTEN - _MEAN_BYTES, _MEAN_BYTES)
    step = 97  # coprime to the number of places, so that they are read out of order
    return [(str(path), starts[i * step % len(starts)], _MEAN_BYTES) for i in range(len(starts))]


def _list_files(places: Sequence[Place]) -> list[str]:
    return list(dict.fromkeys(file for file, *_ in places))


def _measure(read: Callable[..., int], jobs: Sequence[object], threads: int) -> float:
    """Return the bytes per second at which jobs are read from the disk, for at most
    `_MEASURE_S`."""
    for job in jobs:
        _drop(job if isinstance(job, str) else job[0])  # type: ignore[index]
    deadline = time.monotonic() + _MEASURE_S

    def work(job: object) -> int:
        return read(job) if time.monotonic() < deadline else 0

    began = time.monotonic()
    with ThreadPoolExecutor(threads) as pool:
        total = sum(pool.map(work, jobs))
    return total / max(time.monotonic() - began, 1e-6)


def _drop(file: str) -> None:
    """Remove a file from the page cache, as far as the system allows."""
    with contextlib.suppress(OSError), open(file, "rb") as opened:
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _read_whole(file: str) -> int:
    """Read at most 256 MiB of a file; return the number of bytes."""
    total = 0
    with open(file, "rb", buffering=0) as opened:
        while total < 4 * _WRITTEN and (part := opened.read(MIB)):
            total += len(part)
    return total


def _read_place(place: Place) -> int:
    file, offset, length = place
    with open(file, "rb", buffering=0) as opened:
        return len(os.pread(opened.fileno(), length, offset))
