"""The laws of the plan: from random words to crops, operations, boxes and shares.

Every function is a pure map from the words of an epoch's samples to what happens to them,
vectorised over the samples. The words come from `RandomStream`, a Philox stream that is fixed but
for (ordinals, streams); a stream is a (purpose, block), and a purpose has words of its own.
tests/plan/test_statistics.py holds every law against draws of timm's and torchvision's own classes.

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

from fastdeit.plan.operations import (
    JITTER_OPS,
    OPERATIONS,
    OPS,
    RAND_AUGMENT_OPS,
    THREE_OPS,
    op_arguments,
)
from fastdeit.plan.philox import normal, uniform

# one stream of random words for each use; a number is never given twice
(
    ORDER,
    CROP,
    FLIP,
    AUGMENT,
    ERASE,
    ERASE_BOX,
    NOISE,
    MIX,
    MIX_GAMMA,
    DROP_PATH,
    THREE_AUGMENT,
    JITTER,
) = range(12)
_TRIES = 10

_THREE, _JITTER = (
    np.array([OPS.index(name) for name in names], np.int32) for names in (THREE_OPS, JITTER_OPS)
)
_THREE_ARGS = np.array([0.0, 128.0, 0.0])  # none; PIL's default threshold; the radius is drawn
_BLUR_RADIUS = OPERATIONS[OPS.index("GaussianBlur")].span or (0.0, 0.0)
_JITTER_ORDERS = np.array(list(itertools.permutations(range(3))))
_PADDING = 4  # of the simple random crop, reflected

RandomStream = Callable[[np.ndarray, Sequence[tuple[int, int]]], np.ndarray]
"""Ordinals (B,) and streams to uint64 (streams, 4, B) holding 32-bit words."""


def within(u: np.ndarray, low: float, high: float) -> np.ndarray:
    """Uniforms in (0, 1) to uniforms in (low, high)."""
    return low + u * (high - low)


def _quantised(x: np.ndarray) -> np.ndarray:
    """To multiples of 2^-24: logarithms differ in the last bit between machines, the plan must not."""
    return np.round(x * 2.0**24) * 2.0**-24


def _boxes(
    u: np.ndarray,
    limit: np.ndarray,
    area: tuple[float, float],
    ratio: tuple[float, float],
    wide: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """One try at a box of random area and log-uniform aspect; the crop's and the erasing's law.

    u: (4, n) uniforms; limit: (n, 2) height and width to fit in; ratio is width / height if `wide`
    (and the box may be as large as the limit), else height / width (and it must be smaller).
    Returns int32 (n, 4) y, x, height, width and bool (n,), whether it fits.
    """
    target = within(u[0], *area) * limit[:, 0] * limit[:, 1]
    aspect = np.exp(within(u[1], math.log(ratio[0]), math.log(ratio[1])))
    along, across = (
        np.rint(_quantised(np.sqrt(target * aspect))),
        np.rint(_quantised(np.sqrt(target / aspect))),
    )
    size = np.stack((across, along) if wide else (along, across), 1).astype(np.int32)
    size = np.maximum(size, 1) if wide else size
    fits = np.logical_and(*(size <= (limit if wide else limit - 1)).T)
    start = np.floor(u[2:].T * (limit - size + 1)).astype(np.int32)
    return np.concatenate((start, size), 1), fits


def _first_fit(
    first: np.ndarray,
    retry: Callable[[np.ndarray, Sequence[int]], np.ndarray],
    limit: np.ndarray,
    law: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]],
) -> tuple[np.ndarray, np.ndarray]:
    """The first of ten tries of `law` that fits: int32 (B, 4), and bool (B,), whether one did.

    first: words (4, B) of the first try; retry: words (tries, 4, n) of other tries of some of the
    rows.
    """
    boxes, found = law(uniform(first), limit)
    todo = np.flatnonzero(~found)
    if todo.size:
        # few are left after the first try: all others at once cost less than one by one
        u = uniform(retry(todo, range(1, _TRIES))).transpose(1, 0, 2).reshape(4, -1)
        more, fits = law(u, np.tile(limit[todo], (_TRIES - 1, 1)))
        fits = fits.reshape(_TRIES - 1, -1)
        best = fits.argmax(0)
        boxes[todo] = more.reshape(_TRIES - 1, -1, 4)[best, np.arange(todo.size)]
        found[todo] = fits.any(0)
    return boxes, found


def resized_crop(
    words: RandomStream,
    ordinals: np.ndarray,
    first: np.ndarray,
    sizes: np.ndarray,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> np.ndarray:
    """Random resized crop, int32 (B, 4): y, x, height, width in images of `sizes` (B, 2); first:
    words (4, B) of CROP."""
    boxes, found = _first_fit(
        first,
        lambda rows, tries: words(ordinals[rows], [(CROP, attempt) for attempt in tries]),
        sizes,
        lambda u, limit: _boxes(u, limit, scale, ratio, wide=True),
    )
    return np.where(found[:, None], boxes, _centre_crop(sizes, ratio))


def _centre_crop(sizes: np.ndarray, ratio: tuple[float, float]) -> np.ndarray:
    """int32 (B, 4): the largest centred window whose aspect lies within `ratio`, for images where
    ten tries failed."""
    height, width = sizes[:, 0], sizes[:, 1]
    h = np.where(width / height < ratio[0], np.rint(width / ratio[0]), height).astype(np.int32)
    w = np.where(width / height > ratio[1], np.rint(height * ratio[1]), width).astype(np.int32)
    h, w = np.clip(h, 1, height), np.clip(w, 1, width)
    return np.stack(((height - h) // 2, (width - w) // 2, h, w), 1).astype(np.int32)


def simple_crop(first: np.ndarray, sizes: np.ndarray, size: int) -> np.ndarray:
    """Simple random crop, int32 (B, 4): height and width of the resized image, y and x of the
    window of size x size in it.

    torchvision's Resize(size), which sets the short side, and RandomCrop(size, padding=4): the
    window starts at -4 or later and ends at most 4 beyond. first: words (4, B) of CROP; sizes: (B,
    2).
    """
    resized = size * sizes.astype(np.int64) // sizes.min(1, keepdims=True)
    places = resized + 2 * _PADDING - size + 1
    corner = np.floor(uniform(first[:2]).T * places) - _PADDING
    return np.concatenate((resized, corner), 1).astype(np.int32)


def rand_augment(
    words: RandomStream,
    ordinals: np.ndarray,
    *,
    layers: int,
    magnitude: float,
    deviation: float,
    maximum: float,
    prob: float,
) -> tuple[np.ndarray, np.ndarray]:
    """RandAugment: int32 operations and float64 arguments, both (B, layers); -1 and 0 where a gate
    is closed."""
    u = uniform(words(ordinals, [(AUGMENT, block) for block in range(2 * layers)])).reshape(
        layers, 8, -1
    )
    ops = np.floor(u[:, 0] * len(RAND_AUGMENT_OPS)).astype(np.int32)
    drawn = (
        u[:, 4] * magnitude
        if math.isinf(deviation)
        else magnitude + deviation * normal(u[:, 4], u[:, 5])
    )
    args = op_arguments(ops, _quantised(np.clip(drawn, 0.0, maximum)), negate=u[:, 2] > 0.5)
    applied = u[:, 1] < prob
    return np.where(applied, ops, -1).T.astype(np.int32), np.where(applied, args, 0.0).T


def three_augment(words: RandomStream, ordinals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One of grey, solarise and blur, each as likely: int32 operations and float64 arguments, both
    (B, 1)."""
    u = uniform(words(ordinals, [(THREE_AUGMENT, 0)])[0])
    chosen = np.floor(u[0] * 3).astype(np.int32)
    args = np.where(chosen == 2, within(u[1], *_BLUR_RADIUS), _THREE_ARGS[chosen])
    return _THREE[chosen][:, None], args[:, None]


def color_jitter(
    words: RandomStream, ordinals: np.ndarray, jitter: float
) -> tuple[np.ndarray, np.ndarray]:
    """Brightness, contrast and saturation in any of the six orders: int32 operations and float64
    factors, both (B, 3)."""
    u = uniform(words(ordinals, [(JITTER, 0)])[0])
    factors = within(u[:3], max(0.0, 1.0 - jitter), 1.0 + jitter).T
    order = _JITTER_ORDERS[np.floor(u[3] * len(_JITTER_ORDERS)).astype(np.int64)]
    return _JITTER[order], np.take_along_axis(factors, order, 1)


def erase(
    words: RandomStream,
    ordinals: np.ndarray,
    first: np.ndarray,
    size: int,
    prob: float,
    area: tuple[float, float],
    ratio: tuple[float, float],
) -> np.ndarray:
    """RandomErasing, int32 (B, 4): y, x, height, width; zeros where nothing is erased. first: words
    (4, B) of ERASE."""
    erased = np.zeros((len(ordinals), 4), np.int32)
    chosen = np.flatnonzero(uniform(first[0]) < prob)
    if chosen.size:
        there = ordinals[chosen]
        boxes, found = _first_fit(
            words(there, [(ERASE_BOX, 0)])[0],
            lambda rows, tries: words(there[rows], [(ERASE_BOX, attempt) for attempt in tries]),
            np.full((chosen.size, 2), size),
            lambda u, limit: _boxes(u, limit, area, ratio, wide=False),
        )
        # a box that rounds to no pixels erases nothing
        erased[chosen] = np.where((found & boxes[:, 2:].all(1))[:, None], boxes, 0)
    return erased


def mix(
    words: RandomStream,
    groups: np.ndarray,
    *,
    size: int,
    mixup: float,
    cutmix: float,
    minmax: tuple[float, float] | None,
    prob: float,
    switch_prob: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Mixup or CutMix of each group: float32 lam (G,), corrected to the true area, and int32 box
    (G, 4) y0, x0, y1, x1."""
    choice, place = words(groups, [(MIX, 0), (MIX, 1)])
    u = uniform(choice)
    cutting, blending = cutmix > 0 or minmax is not None, mixup > 0
    cut = (u[0] < switch_prob) if cutting and blending else np.full(groups.size, cutting)
    alpha = np.where(cut, cutmix or 1.0, mixup or 1.0)
    lam = np.where(u[1] < prob, _beta(words, groups, alpha), 1.0)
    box = np.where((cut & (lam < 1.0))[:, None], _cut_box(uniform(place), lam, size, minmax), 0)
    area = (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])
    box = np.where(area[:, None] > 0, box, 0)
    return np.where(cut, 1.0 - area / size**2, lam).astype(np.float32), box.astype(np.int32)


def _cut_box(
    u: np.ndarray, lam: np.ndarray, size: int, minmax: tuple[float, float] | None
) -> np.ndarray:
    """CutMix's box, (G, 4) y0, x0, y1, x1: side sqrt(1 - lam) about a uniform centre, clipped; or
    `minmax`'s, unclipped."""
    if minmax:
        low, high = (int(size * bound) for bound in minmax)
        sides = np.floor(low + u[2:] * max(high - low, 1))
        start = np.floor(u[:2] * (size - sides + 1))
        return np.concatenate((start, start + sides)).T.astype(np.int32)
    side = np.trunc(_quantised(size * np.sqrt(1.0 - lam)))
    centre = np.floor(u[:2] * size)
    return np.clip(
        np.concatenate((centre - side // 2, centre + (side + 1) // 2)), 0, size
    ).T.astype(np.int32)


def _beta(words: RandomStream, ordinals: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Beta(alpha, alpha) draws, float64 (G,): G1 / (G1 + G2) of two Gamma(alpha) draws, in
    logarithms."""
    both = np.concatenate((2 * ordinals, 2 * ordinals + 1))
    first, second = _log_gamma_draw(words, both, np.tile(alpha, 2)).reshape(2, -1)
    return _quantised(1.0 / (1.0 + np.exp(np.clip(second - first, -700, 700))))


def _log_gamma_draw(words: RandomStream, ordinals: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Logarithm of Gamma(alpha) draws (Marsaglia and Tsang, ACM TOMS 26(3), 2000, with their boost
    for alpha < 1)."""
    d = (
        alpha + 1.0 - 1.0 / 3.0
    )  # always draw Gamma(alpha + 1), then boost by U^(1 / alpha): right for every alpha
    drawn = np.zeros(len(ordinals))
    todo, attempt = np.arange(len(ordinals)), 0
    while todo.size:
        u = uniform(words(ordinals[todo], [(MIX_GAMMA, attempt)])[0])
        x = normal(u[0], u[1])
        v = (1.0 + x / np.sqrt(9.0 * d[todo])) ** 3
        log_v = np.log(np.maximum(v, 1e-300))
        ok = (v > 0) & (np.log(u[2]) < 0.5 * x**2 + d[todo] * (1.0 - v + log_v))
        log_gamma = np.log(d[todo]) + log_v + np.log(u[3]) / alpha[todo]
        drawn[todo[ok]] = log_gamma[ok]
        todo, attempt = todo[~ok], attempt + 1
    return drawn
