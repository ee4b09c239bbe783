"""The copies of an image in a batch, which are cut from one decoded window.

The plan puts the copies of an image side by side (repeated augmentation, arXiv 1902.05509), and
decoding is most of the work, so each image of a batch is decoded once: the smallest window that
holds the crops of all its copies.
"""

from dataclasses import dataclass

import numpy as np

from fastdeit.data.graphs.windows import place_in


@dataclass(frozen=True)
class DecodePlan:
    """The windows to decode for the B samples of a batch: one for each of its G images."""

    rows: np.ndarray
    """int64 (G,): rows of the index, ascending, each once."""
    windows: np.ndarray
    """int32 (G, 4): y, x, height, width in the stored image."""
    group: np.ndarray
    """int64 (B,): the window that each sample is cut from."""
    first: np.ndarray
    """int64 (G,): the first sample that is cut from each window."""

    def place(self, crop: np.ndarray) -> np.ndarray:
        """Return int32 (B, 4): y, x, height, width of the crops in their decoded windows; crop:
        int32 (B, 4), the same in the stored images."""
        return place_in(self.windows[self.group], crop)


def plan_decoding(image_index: np.ndarray, crop: np.ndarray) -> DecodePlan:
    """Return what to decode for the samples of a batch.

    image_index: int64 (B,), rows of the index; crop: int32 (B, 4), y, x, height, width in the
    stored image, of height and width 1 or more; B is at least 1.
    """
    rows, group = np.unique(image_index, return_inverse=True)
    order = np.argsort(group, kind="stable")
    begin = np.searchsorted(group[order], np.arange(len(rows)))
    corner, shape = crop[order, :2], crop[order, 2:]
    start = np.minimum.reduceat(corner, begin)
    stop = np.maximum.reduceat(corner + shape, begin)
    windows = np.concatenate((start, stop - start), axis=1)
    return DecodePlan(rows, np.ascontiguousarray(windows, np.int32), group, order[begin])


def share_windows(
    image_index: np.ndarray, crop: np.ndarray, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return, for each sample of several batches, the window that it is cut from, int32 (B, 4), and
    the place in its batch of the first sample of that window, int32 (B,).

    image_index, crop: as for `plan_decoding`; each batch but the last has `batch_size` samples.
    """
    batch, place = np.divmod(np.arange(len(image_index)), batch_size)
    of_batch = image_index + batch * (image_index.max() + 1)
    decoding = plan_decoding(of_batch, crop)
    first = place[decoding.first][decoding.group]
    return decoding.windows[decoding.group], first.astype(np.int32)
