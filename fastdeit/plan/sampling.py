"""The distributions of the plan: from random words to crops, operations, boxes and shares.

Every function is a pure map from the words of an epoch's samples to what happens to them,
vectorised over the samples. The words come from a `RandomStream`: Philox with the seed and the
epoch of the plan. A stream is a (purpose, block), and no two purposes share words.
tests/plan/test_statistics.py compares every distribution with draws of timm's and torchvision's own
classes.

Sources: RandAugment (arXiv 1909.13719) in the form of timm 1.0.31 data/auto_augment.py; 3-Augment
and the simple random crop, DeiT III (arXiv 2204.07118) in the form of deit's augment.py; colour
jitter, torchvision 0.26 transforms.ColorJitter; RandomErasing (arXiv 1708.04896), timm's
data/random_erasing.py; random resized crop, timm's data/transforms.py; Mixup (arXiv 1710.09412) and
CutMix (arXiv 1905.04899), timm's data/mixup.py.
"""

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np

from fastdeit.plan.beta import draw_beta
from fastdeit.plan.operations import (
    JITTER_OPS,
    OPERATIONS,
    OPS,
    RAND_AUGMENT_OPS,
    THREE_OPS,
    op_arguments,
)
from fastdeit.plan.philox import RandomStream, normal, quantised, uniform

# purposes of streams; each is used for one thing
ORDER = 0
CROP = 1
FLIP = 2
AUGMENT = 3
ERASE = 4
ERASE_BOX = 5
NOISE = 6
MIX = 7
MIX_GAMMA = 8
DROP_PATH = 9
THREE_AUGMENT = 10
JITTER = 11

_TRIES = 10

_THREE = np.array([OPS.index(name) for name in THREE_OPS], np.int32)
_FIXED = {"SolarizeIncreasing": (128.0, 128.0)}  # PIL's default threshold
# lowest and highest argument of each
_THREE_SPANS = np.array(
    [_FIXED.get(name) or OPERATIONS[OPS.index(name)].span or (0.0, 0.0) for name in THREE_OPS]
)
_JITTER = np.array([OPS.index(name) for name in JITTER_OPS], np.int32)
_JITTER_ORDERS = np.array(list(itertools.permutations(range(3))))
_PADDING = 4  # of the simple random crop, reflected

Range = tuple[float, float]
"""The lower and the upper bound of a value."""

_Try = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""A function from uniforms (4, n) and limits (n, 2) to boxes (n, 4) and whether each fits (n,)."""


def within(u: np.ndarray, low: float | np.ndarray, high: float | np.ndarray) -> np.ndarray:
    """Return uniforms in (low, high) from uniforms in (0, 1)."""
    return low + u * (high - low)


def _try_box(
    u: np.ndarray, limit: np.ndarray, *, area: Range, ratio: Range, wide: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a box of random area and log-uniform aspect, for a crop or for erasing.

    u: (4, n) uniforms; limit: (n, 2) height and width to fit in. ratio is width / height if `wide`
    (then the box may be as large as the limit), else height / width (then it must be smaller).
    Returns int32 (n, 4) y, x, height, width and bool (n,), whether it fits.
    """
    target = within(u[0], *area) * limit[:, 0] * limit[:, 1]
    aspect = np.exp(within(u[1], math.log(ratio[0]), math.log(ratio[1])))
    dividend = np.rint(quantised(np.sqrt(target * aspect)))
    divisor = np.rint(quantised(np.sqrt(target / aspect)))
    if wide:
        size = np.maximum(np.stack((divisor, dividend), 1), 1).astype(np.int32)
        most = limit
    else:
        size = np.stack((dividend, divisor), 1).astype(np.int32)
        most = limit - 1
    fits = (size[:, 0] <= most[:, 0]) & (size[:, 1] <= most[:, 1])
    start = np.floor(u[2:].T * (limit - size + 1)).astype(np.int32)
    return np.concatenate((start, size), 1), fits


def _first_fit(
    first_words: np.ndarray,
    retry_words: Callable[[np.ndarray, Sequence[int]], np.ndarray],
    limit: np.ndarray,
    try_box: _Try,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the first of ten tries that fits, int32 (B, 4), and bool (B,), whether one did.

    first_words: (4, B), of the first try; retry_words: a function from m of the rows and t numbers
    of tries to words (t, 4, m); limit: (B, 2).
    """
    boxes, found = try_box(uniform(first_words), limit)
    todo = np.flatnonzero(~found)
    if todo.size:
        # few rows are left after the first try, so all nine others are drawn at once:
        # (tries, 4, m) -> (4, tries * m), one try of all rows after the other
        retries = _TRIES - 1
        words = retry_words(todo, range(1, _TRIES))
        u = uniform(words).transpose(1, 0, 2).reshape(4, -1)
        more, fits = try_box(u, np.tile(limit[todo], (retries, 1)))
        fits = fits.reshape(retries, -1)
        more = more.reshape(retries, -1, 4)
        # argmax is the first try that fits; the first of all if none does
        boxes[todo] = more[fits.argmax(0), np.arange(todo.size)]
        found[todo] = fits.any(0)
    return boxes, found


def resized_crop(
    stream: RandomStream,
    ordinals: np.ndarray,
    *,
    words: np.ndarray,
    sizes: np.ndarray,
    scale: Range,
    ratio: Range,
) -> np.ndarray:
    """Draw random resized crops, int32 (B, 4): y, x, height, width in images of `sizes` (B, 2).

    words: (4, B), of CROP's first block.
    """

    def retry_words(rows: np.ndarray, tries: Sequence[int]) -> np.ndarray:
        return stream(ordinals[rows], [(CROP, number) for number in tries])

    def try_box(u: np.ndarray, limit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return _try_box(u, limit, area=scale, ratio=ratio, wide=True)

    boxes, found = _first_fit(words, retry_words, sizes, try_box)
    return np.where(found[:, None], boxes, _centre_crop(sizes, ratio))


def _centre_crop(sizes: np.ndarray, ratio: Range) -> np.ndarray:
    """Return the largest centred crops whose aspect lies within `ratio`, int32 (B, 4): those of
    images for which ten tries failed."""
    height, width = sizes[:, 0], sizes[:, 1]
    h = np.where(width / height < ratio[0], np.rint(width / ratio[0]), height).astype(np.int32)
    w = np.where(width / height > ratio[1], np.rint(height * ratio[1]), width).astype(np.int32)
    h, w = np.clip(h, 1, height), np.clip(w, 1, width)
    return np.stack(((height - h) // 2, (width - w) // 2, h, w), 1).astype(np.int32)


def simple_crop(words: np.ndarray, sizes: np.ndarray, size: int) -> np.ndarray:
    """Draw simple random crops, int32 (B, 4): height and width of the resized image, y and x of the
    window of size x size in it.

    torchvision's Resize(size), which sets the short side, and RandomCrop(size, padding=4): the
    window starts at -4 or later and ends at most 4 beyond. words: (4, B), of CROP's first block;
    sizes: (B, 2).
    """
    resized = size * sizes.astype(np.int64) // sizes.min(1, keepdims=True)
    places = resized + 2 * _PADDING - size + 1
    corner = np.floor(uniform(words[:2]).T * places) - _PADDING
    return np.concatenate((resized, corner), 1).astype(np.int32)


def rand_augment(
    stream: RandomStream,
    ordinals: np.ndarray,
    *,
    layers: int,
    magnitude: float,
    deviation: float,
    maximum: float,
    prob: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw RandAugment's operations, int32, and their arguments, float64, both (B, layers); -1 and
    0 where a layer does nothing.

    magnitude: the mean, 0 to `maximum`, with this standard deviation (infinite: a uniform draw up
    to the magnitude); prob: the probability that a layer does something.
    """
    words = stream(ordinals, [(AUGMENT, block) for block in range(2 * layers)])
    u = uniform(words).reshape(layers, 8, -1)
    ops = np.floor(u[:, 0] * len(RAND_AUGMENT_OPS)).astype(np.int32)
    if math.isinf(deviation):
        drawn = u[:, 4] * magnitude
    else:
        drawn = magnitude + deviation * normal(u[:, 4], u[:, 5])
    drawn = quantised(np.clip(drawn, 0.0, maximum))
    args = op_arguments(ops, drawn, negate=u[:, 2] > 0.5)
    applied = u[:, 1] < prob
    return np.where(applied, ops, -1).T.astype(np.int32), np.where(applied, args, 0.0).T


def three_augment(stream: RandomStream, ordinals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Draw one of `THREE_OPS`, each as likely, and its argument out of its span: int32 operations
    and float64 arguments, both (B, 1)."""
    u = uniform(stream(ordinals, [(THREE_AUGMENT, 0)])[0])
    chosen = np.floor(u[0] * len(_THREE)).astype(np.int32)
    args = within(u[1], *_THREE_SPANS[chosen].T)
    return _THREE[chosen][:, None], args[:, None]


def color_jitter(
    stream: RandomStream, ordinals: np.ndarray, jitter: float
) -> tuple[np.ndarray, np.ndarray]:
    """Draw brightness, contrast and saturation in any of the six orders: int32 operations and
    float64 factors, both (B, 3)."""
    u = uniform(stream(ordinals, [(JITTER, 0)])[0])
    factors = within(u[:3], max(0.0, 1.0 - jitter), 1.0 + jitter).T
    order = _JITTER_ORDERS[np.floor(u[3] * len(_JITTER_ORDERS)).astype(np.int64)]
    return _JITTER[order], np.take_along_axis(factors, order, 1)


def erase(
    stream: RandomStream,
    ordinals: np.ndarray,
    *,
    words: np.ndarray,
    size: int,
    prob: float,
    area: Range,
    ratio: Range,
) -> np.ndarray:
    """Draw RandomErasing's boxes, int32 (B, 4): y, x, height, width; zeros where nothing is erased.

    words: (4, B), of ERASE's first block; size: height and width of the images, in pixels; area: a
    range of shares of the image; ratio: a range of height / width.
    """
    erased = np.zeros((len(ordinals), 4), np.int32)
    chosen = np.flatnonzero(uniform(words[0]) < prob)
    if not chosen.size:
        return erased
    places = ordinals[chosen]

    def retry_words(rows: np.ndarray, tries: Sequence[int]) -> np.ndarray:
        return stream(places[rows], [(ERASE_BOX, number) for number in tries])

    def try_box(u: np.ndarray, limit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return _try_box(u, limit, area=area, ratio=ratio, wide=False)

    first_words = stream(places, [(ERASE_BOX, 0)])[0]
    limit = np.full((chosen.size, 2), size)
    boxes, found = _first_fit(first_words, retry_words, limit, try_box)
    # a box that rounds to no pixels erases nothing
    erases = found & boxes[:, 2:].all(1)
    erased[chosen] = np.where(erases[:, None], boxes, 0)
    return erased


def mix(
    stream: RandomStream,
    groups: np.ndarray,
    *,
    size: int,
    mixup: float,
    cutmix: float,
    minmax: Range | None,
    prob: float,
    switch_prob: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw Mixup or CutMix for each group: float32 lam (G,), the share of the sample itself, and
    int32 box (G, 4) y0, x0, y1, x1, zeros for Mixup.

    groups: int64 (G,), numbers of groups; size: height and width of the images, in pixels.
    """
    choice, place = stream(groups, [(MIX, 0), (MIX, 1)])
    u = uniform(choice)
    can_cut = cutmix > 0 or minmax is not None
    if can_cut and mixup > 0:
        cut = u[0] < switch_prob
    else:
        cut = np.full(groups.size, can_cut)
    alpha = np.where(cut, cutmix or 1.0, mixup or 1.0)
    lam = np.where(u[1] < prob, draw_beta(stream, MIX_GAMMA, groups, alpha), 1.0)
    box = np.where((cut & (lam < 1.0))[:, None], _cut_box(uniform(place), lam, size, minmax), 0)
    area = (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])
    box = np.where(area[:, None] > 0, box, 0)
    # a box is clipped at the border and has whole pixels, so its true area decides the share
    lam = np.where(cut, 1.0 - area / size**2, lam)
    return lam.astype(np.float32), box.astype(np.int32)


def _cut_box(u: np.ndarray, lam: np.ndarray, size: int, minmax: Range | None) -> np.ndarray:
    """Draw CutMix's boxes, (G, 4) y0, x0, y1, x1: of side sqrt(1 - lam) about a uniform centre,
    clipped; with `minmax` of random sides, unclipped."""
    if minmax:
        low, high = (int(size * bound) for bound in minmax)
        sides = np.floor(low + u[2:] * max(high - low, 1))
        start = np.floor(u[:2] * (size - sides + 1))
        return np.concatenate((start, start + sides)).T.astype(np.int32)
    side = np.trunc(quantised(size * np.sqrt(1.0 - lam)))
    centre = np.floor(u[:2] * size)
    corners = np.concatenate((centre - side // 2, centre + (side + 1) // 2))
    return np.clip(corners, 0, size).T.astype(np.int32)
