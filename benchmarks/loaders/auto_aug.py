"""DALI's own pipeline with its RandAugment (`nvidia.dali.auto_aug`), as in NVIDIA's examples.

DALI draws the random values itself, so a sample depends on its batch, and nothing can be replayed.
Its RandAugment has other operations and warps than timm's; here each is applied with probability
0.5, as in timm. DALI erases with a constant. It has no copies of an image: a copy costs as much as
another image.
"""

import contextlib
import io
from math import log
from typing import Any

import torch
from nvidia.dali import fn, math, pipeline_def, types
from nvidia.dali.auto_aug.rand_augment import rand_augment
from nvidia.dali.data_node import DataNode

from benchmarks.loaders.case import BATCH, Case, Started
from benchmarks.loaders.images import MEAN, SHARDS, STD

_SHUFFLED = 1000  # samples of the buffer


def start_auto_aug(case: Case) -> Started:
    """Start DALI's pipeline."""
    threads = {"num_threads": case.workers, "device_id": None}
    with contextlib.redirect_stderr(io.StringIO()):  # DALI warns of old names in its own code
        graph = _graph(case, batch_size=BATCH, **threads)
    graph.build()
    return (torch.from_dlpack(graph.run()[0].as_tensor()) for _ in iter(int, 1)), []


@pipeline_def(enable_conditionals=True)
def _graph(case: Case) -> DataNode:
    images = fn.decoders.image_random_crop(
        _read(case), random_area=[0.08, 1.0], random_aspect_ratio=[3 / 4, 4 / 3]
    )
    size = [case.size, case.size]
    images = fn.resize(images, size=size, interp_type=types.INTERP_CUBIC, antialias=True)
    images = fn.flip(images, horizontal=fn.random.coin_flip())
    if case.augments:
        for _ in range(2):
            images = _augment_half(images, size)
    images = fn.crop_mirror_normalize(
        images,
        mean=[255 * value for value in MEAN],
        std=[255 * value for value in STD],
        dtype=types.FLOAT,
        output_layout="CHW",
    )
    return _erase_quarter(images) if case.erases else images


def _read(case: Case) -> DataNode:
    options: dict[str, Any] = {"random_shuffle": True, "initial_fill": _SHUFFLED}
    if case.data == "folder":
        encoded, _ = fn.readers.file(file_root=str(case.folder), **options)
        return encoded
    paths = [str(case.folder / f"train-{number}.tar") for number in range(SHARDS)]
    return fn.readers.webdataset(paths=paths, ext=["jpg"], **options)


def _augment_half(images: DataNode, size: list[int]) -> DataNode:
    if fn.random.coin_flip(dtype=types.BOOL):
        images = rand_augment(images, n=1, m=9, num_magnitude_bins=11, shape=size)
    return images


def _erase_quarter(images: DataNode) -> DataNode:
    """Erase a box with probability 0.25, of the area and the aspect of timm's RandomErasing."""
    if fn.random.coin_flip(probability=0.25, dtype=types.BOOL):
        area = fn.random.uniform(range=[0.02, 1 / 3])
        ratio = math.exp(fn.random.uniform(range=[log(0.3), log(1 / 0.3)]))
        shape = fn.stack(math.sqrt(area * ratio), math.sqrt(area / ratio))
        shape = math.clamp(shape, 0.0, 1.0)
        anchor = fn.random.uniform(range=[0.0, 1.0], shape=[2]) * (1 - shape)
        images = fn.erase(images, anchor=anchor, shape=shape, axis_names="HW", normalized=True)
    return images
