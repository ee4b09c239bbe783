"""The task of packing: a data set's splits, and how they are written."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fastdeit.data.index import Index
from fastdeit.data.indexing import BadImages
from fastdeit.data.packing.encode import Encoding
from fastdeit.data.packing.parts import Layout

HEADERS = 2300
"""The bytes of a sample in a tar file beside its image: headers, label and padding."""


@dataclass(frozen=True)
class ShardSize:
    """The size of a part: a number of images, or, if that is 0, about this number of bytes."""

    images: int = 0
    bytes: int = 0

    def count_images(self, mean_bytes: float) -> int:
        """Return the number of images in a part; mean_bytes: the mean size of an image."""
        return self.images or max(1, int(self.bytes / (mean_bytes + HEADERS)))


@dataclass(frozen=True)
class Packing:
    """The splits of a data set that are written, in a layout."""

    source: Mapping[str, Index]
    """The indexes of `train` and `val`."""
    output: Path
    encoding: Encoding
    layout: Layout
    shard_size: ShardSize
    bad_images: BadImages
    workers: int
