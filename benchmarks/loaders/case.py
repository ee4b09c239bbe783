"""The task of a loader, and the start of a loader."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BATCH = 64


@dataclass(frozen=True)
class Case:
    """One form of the work, the same for every loader."""

    root: str
    """A folder with train/CLASS/*.jpg and tars/*.tar (`images.PATTERN`)."""
    data: str = "folder"
    """The form of the data set: folder or tars."""
    samples: int = 0
    """The number of images in it, without copies."""
    size: int = 224
    copies: int = 1
    """The copies of an image in an epoch, one beside the other."""
    workers: int = 2
    augments: bool = True
    erases: bool = True

    @property
    def folder(self) -> Path:
        return Path(self.root) / ("train" if self.data == "folder" else "tars")


Started = tuple[Iterator[Any], list[int]]
"""A started loader: endless batches, tensors (B, 3, S, S), and the ids of its worker processes."""
Start = Callable[[Case], Started]


def start_torch(loader: Any) -> Started:
    """Start a DataLoader whose workers persist, or a wrapper that has it as `loader`."""
    inner = getattr(loader, "loader", loader)
    batches = _endless(loader)
    next(batches)  # starts the workers
    return batches, [worker.pid for worker in inner._iterator._workers]


def _endless(loader: Any) -> Iterator[Any]:
    while True:
        for images, _ in loader:
            yield images
