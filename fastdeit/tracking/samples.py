"""The first training samples of a run, as pictures with titles."""

from collections.abc import Sequence

import numpy as np
import torch

from fastdeit.data.loaders.batch import Batch
from fastdeit.display.pixels import denormalise
from fastdeit.display.text import TITLE_LETTERS, shorten
from fastdeit.kernels.mix import mix

MOST_SAMPLES = 16
"""The largest number of samples that are shown."""


@torch.no_grad()
def show_samples(
    batch: Batch, classes: Sequence[str], mean: Sequence[float], std: Sequence[float]
) -> tuple[np.ndarray, list[str]]:
    """Return the first images of a batch as the student gets them, uint8 (B, H, W, 3) with B at
    most `MOST_SAMPLES`, and their titles; waits for the device.

    mean, std: those that the images were normalised by.
    """
    rows = slice(0, MOST_SAMPLES)
    images = mix(batch.unmixed, batch.lam, batch.box)[rows]
    return denormalise(images, mean, std), title_samples(batch, classes)[rows]


def title_samples(batch: Batch, classes: Sequence[str]) -> list[str]:
    """Return each sample's class, or both classes with their shares if it is mixed."""
    names = [shorten(classes[label], TITLE_LETTERS) for label in batch.labels.tolist()]
    titles = []
    for row, lam in enumerate(batch.lam.tolist()):
        partner = names[row ^ 1]
        mixed = f"{lam:.2f} {names[row]} + {1 - lam:.2f} {partner}"
        titles.append(names[row] if lam == 1 else mixed)
    return titles
