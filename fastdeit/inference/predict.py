"""The classes that a model sees in images: probabilities of each head and of both."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch

from fastdeit.analysis.attention_maps import AttentionMaps, check_attention, record_attention
from fastdeit.inference.images import InputImage, read_image
from fastdeit.inference.load import LoadedModel
from fastdeit.training.evaluation import student_heads


@dataclass(frozen=True)
class Prediction:
    """The answers of a model for one image; none for an image that could not be read."""

    image: InputImage
    probabilities: dict[str, torch.Tensor] = field(default_factory=dict)
    """The probabilities of the classes, fp32 (K,) by head: `cls`, `dist`, and `both`, of the mean
    of their logits; only `both` of a model with one head."""
    maps: AttentionMaps | None = None
    """The attention maps, if they were asked for."""


class Ranked(NamedTuple):
    """One of the most probable classes of an image."""

    label: int
    probabilities: dict[str, float]
    """Its probability by head."""


def predict_images(
    loaded: LoadedModel,
    paths: Sequence[str],
    *,
    batch_size: int = 32,
    num_workers: int = 0,
    exif_rotate: bool = False,
    with_attention: bool = False,
) -> Iterator[Prediction]:
    """Yield a prediction for each image file, in order; memory holds one batch at a time.

    num_workers: threads that read and resize; 0: one for each core. Raises ValueError if attention
    is asked of a model that has no maps of it (attention_maps.py).
    """
    if with_attention:
        check_attention(loaded.model)
    read = partial(read_image, view=loaded.view, exif_rotate=exif_rotate)
    with ThreadPoolExecutor(num_workers or os.cpu_count()) as pool:
        for start in range(0, len(paths), batch_size):
            images = list(pool.map(read, paths[start : start + batch_size]))
            yield from _predict_batch(loaded, images, with_attention)


@torch.no_grad()
def _predict_batch(
    loaded: LoadedModel, images: Sequence[InputImage], with_attention: bool
) -> list[Prediction]:
    pixels = [image.pixels for image in images if image.pixels is not None]
    if not pixels:
        return [Prediction(image) for image in images]
    parameter = next(loaded.model.parameters())
    batch = torch.stack(pixels).to(parameter.device, parameter.dtype)
    recording = record_attention(loaded.model) if with_attention else nullcontext()
    with recording as record:
        logits = student_heads(loaded.model)(batch)
    maps = record.maps() if record is not None else None
    by_head = {head: values.softmax(1).cpu() for head, values in logits.items()}
    rows = iter(range(len(pixels)))
    return [
        Prediction(image) if image.pixels is None else _pick(image, by_head, maps, next(rows))
        for image in images
    ]


def _pick(
    image: InputImage, by_head: dict[str, torch.Tensor], maps: AttentionMaps | None, row: int
) -> Prediction:
    probabilities = {head: values[row] for head, values in by_head.items()}
    return Prediction(image, probabilities, maps and maps.of_image(row))


def rank_classes(prediction: Prediction, count: int) -> list[Ranked]:
    """Return the `count` most probable classes (or all) by the mean of both heads' logits, the best
    first; none for an image that could not be read."""
    both = prediction.probabilities.get("both", torch.empty(0))
    ranked = []
    for label in both.topk(min(count, len(both))).indices.tolist():
        values = {head: float(all_[label]) for head, all_ in prediction.probabilities.items()}
        ranked.append(Ranked(label, values))
    return ranked
