"""The fastest loader from torch's DataLoader, simplejpeg and torchvision's transforms v2.

Tensors are uint8, channels last for the resize, which is the fastest layout, and in planes after
it; each operation of RandAugment has probability 0.5, as in timm; batches are normalised and erased
by timm's `PrefetchLoader`. It uses the fast options of its libraries: a fast inverse transform and
repeated chroma in the decoder, bilinear warps. Its pixels are not those of PIL, and no step can be
replayed.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import simplejpeg
import torch
import webdataset
from timm.data.distributed_sampler import RepeatAugSampler
from timm.data.loader import PrefetchLoader
from torch.utils.data import DataLoader, default_collate
from torchvision.datasets import ImageFolder
from torchvision.transforms import InterpolationMode, v2

from benchmarks.loaders.case import BATCH, Case, Started, start_torch
from benchmarks.loaders.images import MEAN, PATTERN, SHARDS, STD

_MAGNITUDE = {"magnitude": 9, "num_magnitude_bins": 11}  # timm's m9: 9 of 0 to 10
_SHUFFLED = 1000  # samples of the buffer, as in webdataset's examples
Sample = tuple[torch.Tensor, int]
"""The copies of one image that are made from one decoding, uint8 (n, 3, S, S), and its label."""


def start_each_copy(case: Case) -> Started:
    """Start the loader that decodes each copy separately, as with deit's RASampler."""
    return _start(case, each=case.copies, together=1)


def start_decoded_once(case: Case) -> Started:
    """Start the loader that decodes an image once and transforms it `copies` times, as the
    authors of "Augment your batch" do (arXiv 1901.09335, github.com/eladhoffer/convNet.pytorch)."""
    return _start(case, each=1, together=case.copies)


def _start(case: Case, each: int, together: int) -> Started:
    """Start a loader that reads each image `each` times and makes `together` copies at a time."""
    transform = functools.partial(_copies, _transform(case), together)
    loader = _of_shards if case.data == "tars" else _of_folder
    made = loader(case, transform, each, batch_size=BATCH // together)
    erase = {"re_prob": 0.25 if case.erases else 0.0, "re_mode": "pixel"}
    return start_torch(PrefetchLoader(made, MEAN, STD, device=torch.device("cpu"), **erase))


def _of_folder(
    case: Case, transform: Callable[[torch.Tensor], torch.Tensor], each: int, batch_size: int
) -> DataLoader[Sample]:
    made = ImageFolder(str(case.folder), transform, loader=_read)
    sampler = RepeatAugSampler(made, num_replicas=1, rank=0, num_repeats=each, selected_round=0)
    return _loader(made, case, batch_size, sampler=sampler)


def _of_shards(
    case: Case, transform: Callable[[torch.Tensor], torch.Tensor], each: int, batch_size: int
) -> DataLoader[Sample]:
    made = webdataset.WebDataset(str(case.folder / PATTERN), shardshuffle=SHARDS).repeat()
    made = made.shuffle(_SHUFFLED).to_tuple("jpg", "cls")
    made = made.compose(functools.partial(_repeat, each=each))
    return _loader(made.map_tuple(lambda data: transform(_decode(data)), int), case, batch_size)


def _loader(made: Any, case: Case, batch_size: int, **options: Any) -> DataLoader[Sample]:
    return DataLoader(
        made,
        batch_size,
        num_workers=case.workers,
        collate_fn=_collate,
        drop_last=True,
        persistent_workers=True,
        **options,
    )


def _read(path: str) -> torch.Tensor:
    return _decode(Path(path).read_bytes())


def _decode(data: bytes) -> torch.Tensor:
    """Return uint8 (3, H, W), channels last in memory."""
    pixels = simplejpeg.decode_jpeg(data, "RGB", fastdct=True, fastupsample=True)
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _transform(case: Case) -> v2.Transform:
    bicubic = InterpolationMode.BICUBIC
    steps: list[v2.Transform] = [
        v2.RandomResizedCrop(case.size, interpolation=bicubic, antialias=True),
        v2.Lambda(torch.Tensor.contiguous),
        v2.RandomHorizontalFlip(),
    ]
    one = v2.RandAugment(1, interpolation=InterpolationMode.BILINEAR, **_MAGNITUDE)
    return v2.Compose(steps + 2 * [v2.RandomApply([one], p=0.5)] * case.augments)


def _copies(transform: v2.Transform, count: int, image: torch.Tensor) -> torch.Tensor:
    return torch.stack([transform(image) for _ in range(count)])


def _repeat(samples: Iterable[object], each: int) -> Iterator[object]:
    for sample in samples:
        for _ in range(each):
            yield sample


def _collate(samples: list[Sample]) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = default_collate(samples)  # in shared memory
    return images.flatten(0, 1), labels.repeat_interleave(images.shape[1])
