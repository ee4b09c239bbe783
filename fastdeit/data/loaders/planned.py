"""A planned micro-batch on its way through DALI: what is fed, and the `Batch` of what comes out."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fastdeit.data.device.augment import Augmenter
from fastdeit.data.device.rows import place_crops
from fastdeit.data.device.transfer import as_tensor, to_device_of
from fastdeit.data.graphs.copies import DecodePlan, plan_decoding
from fastdeit.data.graphs.options import PipelineOptions
from fastdeit.data.index import Index
from fastdeit.data.loaders.batch import Batch
from fastdeit.data.loaders.packed import take_packed, take_tensor
from fastdeit.kernels.normalise import Pixels
from fastdeit.plan.digest import add_digests
from fastdeit.plan.plan import SampleParams
from fastdeit.plan.spec import PlanSpec


@dataclass(frozen=True)
class Planned:
    """Consecutive samples, a row each, with all that is planned for them.

    Attributes: ordinals, int64 (B,); draws; keep, bool (B, depth, 2), DropPath's bits; digests,
    uint64 (B,); arrays, the rows that the graph takes, or the kernels that follow it; decoding, the
    windows that the graph decodes for the kernels.
    """

    ordinals: np.ndarray
    draws: SampleParams
    keep: np.ndarray
    digests: np.ndarray
    arrays: tuple[np.ndarray, ...]
    decoding: DecodePlan | None = None

    def part(self, rows: slice) -> "Planned":
        """Return some of the samples, without `decoding`."""
        draws = {name: array[rows] for name, array in vars(self.draws).items()}
        return Planned(
            self.ordinals[rows],
            SampleParams(**draws),
            self.keep[rows],
            self.digests[rows],
            tuple(array[rows] for array in self.arrays),
        )


Unmixed = torch.Tensor | Pixels
"""The input of `mix`, see `Batch.unmixed`."""
Fed = tuple[Planned, np.ndarray, tuple[np.ndarray, ...]]
"""A micro-batch as `Stream` takes it: what is returned with the images, rows of the index to read,
arrays that the graph takes."""


def feed_batch(planned: Planned, options: PipelineOptions) -> Fed:
    """Return a micro-batch as `Stream` takes it."""
    draws = planned.draws
    if not options.uses_kernels:
        return planned, draws.image_index, planned.arrays
    decoding = plan_decoding(draws.image_index, draws.crop)
    return dataclasses.replace(planned, decoding=decoding), decoding.rows, (decoding.windows,)


def make_taker(spec: PlanSpec, options: PipelineOptions) -> Callable[[Any, Planned], Unmixed]:
    """Return a function that takes images out of DALI; with kernels, it computes them from decoded
    windows."""
    if not options.uses_kernels:
        return take_tensor
    augmenter = Augmenter(spec, options.mean, options.std)

    def take(decoded: Any, planned: Planned) -> Pixels:
        decoding = planned.decoding
        assert decoding is not None
        packed = take_packed(decoded, decoding.windows)
        place = place_crops(planned.draws, decoding.windows, decoding.group)
        changes = to_device_of(packed, *planned.arrays)
        return augmenter.augment_windows(packed, [*map(as_tensor, place)], changes)

    return take


def make_batch(
    unmixed: Unmixed, planned: Planned, index: Index, record: np.ndarray | None
) -> Batch:
    """Return a micro-batch on the device of its images; record: uint8 (B, n), the teacher's records
    of its samples, or None."""
    draws = planned.draws
    arrays = [index.labels[draws.image_index], draws.lam, draws.box, planned.keep]
    if record is not None:
        arrays.append(record)
    images = unmixed.images if isinstance(unmixed, Pixels) else unmixed
    labels, lam, box, keep, *sent = to_device_of(images, *arrays)
    return Batch(
        unmixed=unmixed,
        labels=labels,
        lam=lam,
        box=box,
        drop_path_mask=keep,
        ordinals=torch.from_numpy(planned.ordinals),
        image_index=torch.from_numpy(draws.image_index),
        teacher_record=sent[0] if sent else None,
        digest=add_digests(planned.digests),
    )
