"""A stand-in of ImageNet: as many JPEG files, of similar sizes, with few bytes in each.

Each image has one of some hundred sizes, four areas of one colour each, which depend on the size
alone, and its own comment in the header, so that no two files are equal. The seed decides
everything.
"""

import functools
import io
import itertools
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.imagenet.sizes import list_sizes
from fastdeit.storage.atomic import atomic_open

SHARD_IMAGES = 1000
_QUALITY = 30
_BLOCK = 16
"""The pixels of JPEG's largest block: areas that end at a multiple of it need few bytes."""
_START = b"\xff\xd8"
_COMMENT = b"\xff\xfe"


@dataclass(frozen=True)
class StandIn:
    """The images of one split; image i is a function of (seed, split, i).

    labels: int64 (N,); sizes: int64 (N, 2), width and height in pixels.
    """

    labels: np.ndarray
    sizes: np.ndarray

    def encode(self, row: int) -> bytes:
        """Return the JPEG file of an image, with its number as a comment."""
        text = b"image %08d" % row
        comment = _COMMENT + (len(text) + 2).to_bytes(2, "big") + text
        return _START + comment + _encode(*self.sizes[row].tolist())[len(_START) :]


def make_stand_in(images: int, classes: int, seed: int) -> StandIn:
    """Return a split of `images` images, in random order, with classes of equal size."""
    random = np.random.default_rng([seed, images])
    labels = random.permutation(np.arange(images) % classes)
    sizes, shares = list_sizes(seed)
    return StandIn(labels, sizes[random.choice(len(sizes), images, p=shares)])


@functools.cache
def _encode(width: int, height: int) -> bytes:
    """Return a small JPEG with four areas of one colour each."""
    random = np.random.default_rng([width, height])
    pixels = random.integers(0, 256, (2, 2, 3), dtype=np.uint8)
    rows = (np.arange(height) // _BLOCK * _BLOCK * 2 >= height).astype(int)
    columns = (np.arange(width) // _BLOCK * _BLOCK * 2 >= width).astype(int)
    file = io.BytesIO()
    image = Image.fromarray(pixels[rows[:, None], columns])
    image.save(file, "JPEG", quality=_QUALITY, optimize=True)
    return file.getvalue()


def write_shards(folder: Path, images: int, classes: int, seed: int) -> Iterator[int]:
    """Write folder/NNNNNN.tar, WebDataset's shards of `SHARD_IMAGES`, except those that exist;
    yield the number of images so far, after each shard."""
    stand_in = make_stand_in(images, classes, seed)
    folder.mkdir(parents=True, exist_ok=True)
    for first in range(0, images, SHARD_IMAGES):
        shard = folder / f"{first // SHARD_IMAGES:06d}.tar"
        rows = range(first, min(first + SHARD_IMAGES, images))
        if not shard.exists():
            with atomic_open(shard) as file:
                file.write(_encode_shard(stand_in, rows))
        yield rows.stop


def _encode_shard(stand_in: StandIn, rows: range) -> bytes:
    """Return a tar file with KEY.jpg and KEY.cls of each row."""
    parts: list[bytes] = []
    for row in rows:
        label = stand_in.labels[row]
        parts += _encode_member(f"{row:08d}.jpg", stand_in.encode(row))
        parts += _encode_member(f"{row:08d}.cls", b"%d" % label)
    return b"".join(parts) + bytes(2 * tarfile.BLOCKSIZE)


def _encode_member(name: str, content: bytes) -> tuple[bytes, bytes, bytes]:
    """Return header, content and padding of a member."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    padding = bytes(-len(content) % tarfile.BLOCKSIZE)
    return member.tobuf(tarfile.USTAR_FORMAT), content, padding


def link_shards(shards: Path, folder: Path, images: int, wanted: int) -> int:
    """Make hard links folder/NNNNNN.tar to shards with `images` images, repeatedly, until they have
    `wanted` images or a few more; return their number."""
    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    for number, shard in enumerate(itertools.cycle(sorted(shards.glob("*.tar")))):
        link = folder / f"{number:06d}.tar"
        if not link.exists():
            os.link(shard, link)
        count += min(SHARD_IMAGES, images - int(shard.stem) * SHARD_IMAGES)
        if count >= wanted:
            return count
    raise FileNotFoundError(f"{shards} has no shards")


def write_folder(folder: Path, images: int, classes: int, seed: int) -> Iterator[int]:
    """Write folder/CLASS/NNNNNNNN.JPEG; yield the number of images so far, after each class.

    Classes that exist are skipped: a class gets its name when it is whole.
    """
    stand_in = make_stand_in(images, classes, seed)
    order = np.argsort(stand_in.labels, kind="stable")
    ends = np.cumsum(np.bincount(stand_in.labels, minlength=classes))
    folder.mkdir(parents=True, exist_ok=True)
    for label, rows in enumerate(np.split(order, ends[:-1])):
        target = folder / name_class(label)
        if not target.exists():
            _write_class(target, stand_in, rows)
        yield int(ends[label])


def name_class(label: int) -> str:
    """Return a name in WordNet's form."""
    return f"n{label:08d}"


def _write_class(target: Path, stand_in: StandIn, rows: np.ndarray) -> None:
    begun = target.with_name(f".{target.name}")
    begun.mkdir(exist_ok=True)
    for row in rows.tolist():
        (begun / f"{target.name}_{row:08d}.JPEG").write_bytes(stand_in.encode(row))
    os.replace(begun, target)
