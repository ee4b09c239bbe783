"""The folders and archives of CIFAR that a folder holds, and the images of a split.

A file in an archive has the path ARCHIVE/FOLDER/FILE, as if the archive were a folder.
"""

import functools
import os
import tarfile
import zlib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from fastdeit.data.formats.check import ImageInfo
from fastdeit.data.formats.cifar.batches import SIDE, Batch, read_binary, read_names, read_python
from fastdeit.data.formats.labels import number_labels
from fastdeit.data.formats.listing import DataError, Listing, Stamp, stamp, stamp_of
from fastdeit.data.formats.shards.members import BoundedMember, iterate_members

MAX_BYTES = 2**30
"""The largest size of a file; the largest published one, CIFAR-100's train, has 155 MB."""


class Form(NamedTuple):
    """One of the published forms of CIFAR-10 or CIFAR-100."""

    data_set: str
    folder: str
    archive: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    names_file: str
    names_key: str
    """The key of the classes' names in `names_file`; empty if that is text."""
    label: str | int
    """The key of the labels; in the binary form, the number of labels of an image."""


_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
FORMS = (
    Form(
        data_set="cifar10",
        folder="cifar-10-batches-py",
        archive="cifar-10-python.tar.gz",
        train=_BATCHES,
        test=("test_batch",),
        names_file="batches.meta",
        names_key="label_names",
        label="labels",
    ),
    Form(
        data_set="cifar10",
        folder="cifar-10-batches-bin",
        archive="cifar-10-binary.tar.gz",
        train=tuple(f"{name}.bin" for name in _BATCHES),
        test=("test_batch.bin",),
        names_file="batches.meta.txt",
        names_key="",
        label=1,
    ),
    Form(
        data_set="cifar100",
        folder="cifar-100-python",
        archive="cifar-100-python.tar.gz",
        train=("train",),
        test=("test",),
        names_file="meta",
        names_key="fine_label_names",
        label="fine_labels",
    ),
    Form(
        data_set="cifar100",
        folder="cifar-100-binary",
        archive="cifar-100-binary.tar.gz",
        train=("train.bin",),
        test=("test.bin",),
        names_file="fine_label_names.txt",
        names_key="",
        label=2,
    ),
)
_FORM_OF = {name: form for form in FORMS for name in (*form.train, *form.test)}


def find_cifar(root: Path, is_train: bool) -> tuple[Path, ...]:
    """Return the files of a split in `root`, its published folder or its archive; empty if there is
    none.

    Raises DataError if both CIFAR-10 and CIFAR-100 are there.
    """
    homes = list(_list_homes(root))
    if len({form.data_set for form, _ in homes}) > 1:
        both = " and ".join(home.name for _, home in homes)
        raise DataError(f"{root}: holds {both}; --data-path must be the folder of one of them")
    return next((_list_files(form, home, is_train) for form, home in homes), ())


def choose_cifar(root: Path, data_set: str) -> Path:
    """Return the folder in which `find_cifar` finds `data_set` (cifar10 or cifar100); `root` may
    hold both.

    Raises DataError if it holds none, or both in archives.
    """
    homes = list(_list_homes(root))
    own = [home for form, home in homes if form.data_set == data_set]
    if not own:
        known = [name for form in FORMS if form.data_set == data_set for name in form[1:3]]
        raise DataError(f"{root}: holds no {data_set}; expected one of {', '.join(known)}")
    if len(own) == len(homes):
        return root
    unpacked = [home for home in own if home.is_dir()]
    if not unpacked:
        raise DataError(f"{own[0].parent}: must be unpacked, as {root} holds the other CIFAR, too")
    return unpacked[0]


def _list_homes(root: Path) -> Iterator[tuple[Form, Path]]:
    """Yield each form that `root` holds, and the folder of its files, which may be in an archive;
    unpacked ones first."""
    for form in FORMS:
        for home in (root, root / form.folder):
            if all((home / names[0]).is_file() for names in (form.train, form.test)):
                yield form, home
    for form in FORMS:
        if (root / form.archive).is_file():
            yield form, root / form.archive / form.folder


def _list_files(form: Form, home: Path, is_train: bool) -> tuple[Path, ...]:
    return tuple(home / name for name in (form.train if is_train else form.test))


def list_cifar(root: Path, files: Sequence[Path], classes: Sequence[str] | None) -> Listing:
    """List the images of a split in the order of its files; an image's offset is its number in its
    file.

    Raises DataError for a file that is missing, damaged or in another form, and for labels that
    are not classes.
    """
    batches = [read_batch(file) for file in files]
    counts = [len(batch.labels) for batch in batches]
    shards = tuple(os.path.relpath(file, root) for file in files)
    offsets = np.concatenate([np.arange(count) for count in counts])
    shard = np.repeat(np.arange(len(files), dtype=np.int32), counts)
    names = [f"{shards[i]}/{number:05d}" for i, number in zip(shard, offsets, strict=True)]
    labels = np.concatenate([batch.labels for batch in batches])
    numbers, known = number_labels(
        labels.tolist(),
        classes or _read_class_names(files[0]),
        lambda row: f"{files[shard[row]]}: image {offsets[row]}",
    )
    facts = [os.stat(_find_archive(file) or file) for file in files]
    return Listing(
        classes=known,
        names=pa.array(list(map(os.fsencode, names)), pa.binary()),
        labels=numbers,
        num_bytes=np.full(len(labels), batches[0].rows.shape[1]),
        mtimes=np.repeat([fact.st_mtime_ns for fact in facts], counts),
        ctimes=np.repeat([fact.st_ctime_ns for fact in facts], counts),
        stamps=stamp(root, {_find_archive(file) or file for file in files}),
        facts=ImageInfo(SIDE, SIDE, "CIFAR", "RGB", 1),
        shards=shards,
        shard=shard,
        offset=offsets,
    )


def read_batch(file: Path) -> Batch:
    """Return the images of a file of `find_cifar`. Raises DataError if it is missing or damaged."""
    archive = _find_archive(file)
    if archive is None:
        return _read_file(file, _stamp(file))
    return _read_archive(archive, _stamp(archive))[file.name]


def _stamp(file: Path) -> Stamp | None:
    """Return the stamp of a file, None if it cannot be had, which reading will report."""
    try:
        return stamp_of(file)
    except OSError:
        return None


def _find_archive(file: Path) -> Path | None:
    """Return the archive that holds a file, None if it is not in one."""
    archive = file.parents[1]
    return archive if archive.name.endswith(".tar.gz") and archive.is_file() else None


@functools.lru_cache(maxsize=16)
def _read_file(file: Path, _: Stamp | None) -> Batch:
    """Return the images of a file, read once while its stamp is the same."""
    return _parse(file, _read_bytes(file))


def _read_bytes(file: Path) -> bytes:
    """Return the bytes of a file, at most one more than MAX_BYTES. Raises DataError for a file that
    cannot be read."""
    try:
        with file.open("rb") as opened:
            return opened.read(MAX_BYTES + 1)
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror or error}") from error


@functools.lru_cache(maxsize=2)
def _read_archive(archive: Path, _: Stamp | None) -> dict[str, Batch]:
    """Return the images of all files in an archive by name, unpacked once while its stamp is the
    same."""
    form = next(form for form in FORMS if form.archive == archive.name)
    wanted = {*form.train, *form.test}
    found = {
        name: _parse(archive / form.folder / name, data)
        for name, data in _unpack(archive, form, wanted)
    }
    missing = sorted(wanted - found.keys())
    if missing:
        raise DataError(f"{archive}: holds no {form.folder}/{missing[0]}")
    return found


def _unpack(archive: Path, form: Form, wanted: Collection[str]) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the bytes of files in the folder of a form."""
    try:
        with tarfile.open(archive, "r:gz", tarinfo=BoundedMember) as opened:
            for member in iterate_members(opened):
                folder, _, name = member.name.removeprefix("./").rpartition("/")
                if folder == form.folder and name in wanted and member.isfile():
                    content = opened.extractfile(member)
                    assert content is not None
                    yield name, content.read(MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise DataError(f"{archive}: cannot be unpacked: {error}") from error


def _parse(file: Path, data: bytes) -> Batch:
    if len(data) > MAX_BYTES:
        raise DataError(f"{file}: must be at most {MAX_BYTES:,} bytes")
    label = _FORM_OF[file.name].label
    if isinstance(label, int):
        return read_binary(data, str(file), label)
    return read_python(data, str(file), label)


def _read_class_names(file: Path) -> tuple[str, ...] | None:
    """Return the names of the classes in the order of the labels; None if no file has them."""
    form = _FORM_OF[file.name]
    archive = _find_archive(file)
    names_file = file.with_name(form.names_file)
    if archive is not None:
        data = dict(_unpack(archive, form, [form.names_file])).get(form.names_file)
    else:
        data = _read_bytes(names_file) if names_file.is_file() else None
    return None if data is None else read_names(data, str(names_file), form.names_key)
