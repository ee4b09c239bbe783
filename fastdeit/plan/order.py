"""The order of the images in an epoch: a random permutation, computed from (seed, epoch) alone.

The images are sorted by 64 random bits each, and equal bits keep the order of the rows. Bits and
row are sorted as one integer of 64 bits, for which NumPy has a vectorised sort; the bits that do
not fit beside the row are compared afterwards, where all others are equal. For the 14,197,122
images of ImageNet-21k this takes a tenth of a stable argsort's time (docs/data.md).
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from fastdeit.plan import sampling
from fastdeit.plan.philox import random_words

_CHUNK = 2**14  # rows whose random bits are computed at once: they fit in the processor's cache
_KEPT = 2  # epochs: the present one, and the next


class EpochOrders:
    """The orders of the two epochs that were asked for last; a thread may compute one beforehand.

    make: a function from an epoch to its order; `get` raises what it raises. The methods may be
    called from several threads.
    """

    def __init__(self, make: Callable[[int], np.ndarray]) -> None:
        self._make = make
        self._orders: dict[int, Future[np.ndarray]] = {}
        self._lock = threading.Lock()

    def get(self, epoch: int) -> np.ndarray:
        """Return the order of an epoch; wait until its thread has computed it."""
        return self._begin(epoch).result()

    def prepare(self, epoch: int) -> None:
        """Start a thread that computes the order of an epoch, unless it has been started."""
        self._begin(epoch)

    def clear(self) -> None:
        """Remove every order, also one that is being computed."""
        with self._lock:
            self._orders.clear()

    def _begin(self, epoch: int) -> Future[np.ndarray]:
        """Return the future of an epoch's order, and start its thread unless that has happened."""
        with self._lock:
            if epoch not in self._orders:
                while len(self._orders) >= _KEPT:
                    self._orders.pop(next(iter(self._orders)))
                self._orders[epoch] = self._start(epoch)
            return self._orders[epoch]

    def _start(self, epoch: int) -> Future[np.ndarray]:
        pool = ThreadPoolExecutor(1, "order")
        order = pool.submit(self._make, epoch)
        pool.shutdown(wait=False)  # the thread ends with its one job
        return order


class ImageOrders:
    """The orders of a data set's images, without those that are excluded.

    Attributes: excluded, int64 (n,), ascending.
    """

    def __init__(self, seed: int, count: int) -> None:
        self.excluded = np.zeros(0, np.int64)
        self._random = EpochOrders(lambda epoch: permute_rows(seed, epoch, count))
        self._orders = EpochOrders(self._make)

    def exclude(self, rows: np.ndarray) -> None:
        """Exclude these rows (int64 (n,), ascending) and no others."""
        self.excluded = rows
        self._orders.clear()

    def prepare(self, epoch: int) -> None:
        """Start a thread that computes the order of an epoch, unless it has been started."""
        self._orders.prepare(epoch)

    def get(self, epoch: int) -> np.ndarray:
        """Return uint32 (N,): the permutation of an epoch, with the next good image of its side in
        place of each excluded one. Raises ValueError if a side has no other image."""
        return self._orders.get(epoch)

    def _make(self, epoch: int) -> np.ndarray:
        order = self._random.get(epoch)
        if not self.excluded.size:
            return order
        # a copy: the next image that is excluded needs no new permutation
        order = order.copy()
        replace_excluded(order, self.excluded, epoch)
        return order


def permute_rows(seed: int, epoch: int, count: int) -> np.ndarray:
    """Return uint32 (count,): the rows 0 to count - 1 in random order."""
    row_bits = np.uint64((count - 1).bit_length())
    keys = np.empty(count, np.uint64)  # the leading random bits, then the row
    for first in range(0, count, _CHUNK):
        rows = np.arange(first, min(first + _CHUNK, count), dtype=np.uint64)
        keys[first : first + _CHUNK] = _random_bits(seed, epoch, rows) >> row_bits << row_bits
        keys[first : first + _CHUNK] |= rows
    keys.sort()
    order = (keys & ((np.uint64(1) << row_bits) - np.uint64(1))).astype(np.uint32)
    keys >>= row_bits
    _sort_ties(order, keys, seed, epoch)
    return order


def _sort_ties(order: np.ndarray, leading: np.ndarray, seed: int, epoch: int) -> None:
    """Sort the rows whose leading bits are equal by all their random bits, then by row; in place.

    leading: uint64 (N,): the leading bits of each row of the order, ascending.
    """
    equal = leading[1:] == leading[:-1]
    tied = np.append(equal, False) | np.insert(equal, 0, False)
    places = np.flatnonzero(tied)
    rows = order[places]
    order[places] = rows[np.lexsort((rows, _random_bits(seed, epoch, rows)))]


def _random_bits(seed: int, epoch: int, rows: np.ndarray) -> np.ndarray:
    """Return uint64 (n,): 64 random bits of each row."""
    words = random_words(seed, epoch, rows, sampling.ORDER)
    return words[0] << np.uint64(32) | words[1]


def replace_excluded(order: np.ndarray, excluded: np.ndarray, epoch: int) -> None:
    """Replace each excluded image of an order by the next good one of its side, in place.

    Raises ValueError if a side has no other image.
    """
    # the images of side 0 are at even places, those of side 1 at odd ones; an image that is left
    # over by an odd N is on neither side
    paired = 2 * (len(order) // 2)
    is_excluded = np.zeros(len(order), bool)
    is_excluded[excluded] = True
    for side in range(2):
        images = order[side:paired:2]  # a view: assigning to it changes `order`
        _replace(images, is_excluded[images], f"side {side} of epoch {epoch}")


def _replace(images: np.ndarray, bad: np.ndarray, place: str) -> None:
    """Replace the bad images by the first good one after each, in place.

    The search continues at the start. place: which images these are, for the error.
    """
    wrong = np.flatnonzero(bad)
    good = np.flatnonzero(~bad)
    if not good.size:
        raise ValueError(f"every image of {place} is excluded; one must remain on each side")
    images[wrong] = images[good[np.searchsorted(good, wrong) % good.size]]
