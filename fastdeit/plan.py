"""The plan: what happens to each training sample, decided before anything is read.

Everything random on the data side is a pure function of (seed, epoch, ordinal), the ordinal being the sample's place in the
epoch's global order. Rank, world size, micro-batch, workers and time never enter, so any step of any run can be computed
alone and replayed on any number of devices. Pure NumPy; the invariants are held by tests/test_plan.py.

Order. Units of two samples: ordinal = 2 * unit + side, unit = p * repeats + view. With P = N // 2 pairs in the epoch's
permutation, side 0 is image perm[2p] and side 1 is perm[2 * ((p + view) mod P) + 1]: the copies of an image are neighbours,
each has another partner, and no image is mixed with itself. Step t of global batch B takes the units [t*B/2, (t+1)*B/2);
rank r of W takes those congruent to r modulo W.

Sources: RandAugment (arXiv 1909.13719) in the form of timm 1.0.31 data/auto_augment.py; RandomErasing (arXiv 1708.04896),
data/random_erasing.py; random resized crop, data/transforms.py; Mixup (arXiv 1710.09412) and CutMix (arXiv 1905.04899),
data/mixup.py; repeated augmentation (arXiv 1902.05509).
"""

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from fastdeit.philox import normal, random_words, uniform

VERSION = 1
"""Rises whenever the same spec would give other draws; part of the fingerprint."""

OPS = (
    *("AutoContrast", "Equalize", "Invert", "Rotate", "PosterizeIncreasing", "SolarizeIncreasing", "SolarizeAdd"),
    *("ColorIncreasing", "ContrastIncreasing", "BrightnessIncreasing", "SharpnessIncreasing"),
    *("ShearX", "ShearY", "TranslateXRel", "TranslateYRel"),
)
"""The 15 operations of timm's `inc1` set, in its order."""

# one stream of random words for each use; a number is never given twice
_ORDER, _CROP, _FLIP, _AUGMENT, _ERASE, _ERASE_BOX, _NOISE, _MIX, _MIX_GAMMA, _DROP_PATH = range(10)
_TRIES = 10


@dataclass(frozen=True)
class PlanSpec:
    """The distributions that the plan draws from. Defaults: DeiT (arXiv 2012.12877, table 9), two copies an image."""

    seed: int = 0
    input_size: int = 224
    repeats: int = 2
    """Copies of an image in an epoch, each with draws of its own."""
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    hflip: float = 0.5
    ra_layers: int = 2
    """RandAugment operations per image; 0 turns it off."""
    ra_magnitude: float = 9.0
    ra_std: float = 0.5
    """Deviation of the magnitude; infinity draws it uniformly from [0, ra_magnitude]."""
    ra_max: float = 10.0
    ra_prob: float = 0.5
    reprob: float = 0.25
    remode: str = "pixel"
    erase_area: tuple[float, float] = (0.02, 1 / 3)
    erase_ratio: tuple[float, float] = (0.3, 1 / 0.3)
    mixup: float = 0.8
    cutmix: float = 1.0
    cutmix_minmax: tuple[float, float] | None = None
    mixup_prob: float = 1.0
    mixup_switch_prob: float = 0.5
    mixup_group: int = 2
    """Neighbouring samples that share lambda, mode and box: 2 is a pair, 256 is deit's layout on 4 GPUs."""

    def __post_init__(self) -> None:
        _require(0 <= self.seed < 2**32, "seed", self.seed, "0 to 4294967295")
        _require(self.input_size >= 1, "input_size", self.input_size, "1 or more")
        _require(self.repeats >= 1, "repeats", self.repeats, "1 or more")
        _require(0 < self.scale[0] <= self.scale[1] <= 1, "scale", self.scale, "0 < low <= high <= 1")
        _require(0 < self.ratio[0] <= self.ratio[1], "ratio", self.ratio, "0 < low <= high")
        for name in ("hflip", "ra_prob", "reprob", "mixup_prob", "mixup_switch_prob"):
            _require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "a probability, 0 to 1")
        for name in ("ra_layers", "ra_magnitude", "ra_std", "mixup", "cutmix"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        _require(self.remode in ("const", "rand", "pixel"), "remode", self.remode, "const, rand, pixel")
        group = self.mixup_group
        _require(group >= 2 and group % 2 == 0, "mixup_group", group, "an even number, 2 or more")
        low, high = self.cutmix_minmax or (0.1, 0.9)
        _require(0 < low <= high <= 1, "cutmix_minmax", self.cutmix_minmax, "0 < low <= high <= 1")

    @property
    def mixes(self) -> bool:
        """Whether any sample is mixed at all."""
        return self.mixup_prob > 0 and (self.mixup > 0 or self.cutmix > 0 or self.cutmix_minmax is not None)


@dataclass(frozen=True)
class Draws:
    """What happens to B samples, a row each; boxes are in pixels."""

    image: np.ndarray
    """int64 (B,): row of the data set's index."""
    crop: np.ndarray
    """int32 (B, 4): y, x, height, width of the window in the stored image."""
    flip: np.ndarray
    """bool (B,): mirrored left to right."""
    ops: np.ndarray
    """int32 (B, layers): index into OPS; -1 where the layer does nothing."""
    op_args: np.ndarray
    """float64 (B, layers): timm's argument of the operation, signed (degrees, bits, threshold, factor, fraction); 0 if none."""
    erase: np.ndarray
    """int32 (B, 4): y, x, height, width in the output image; height 0 erases nothing."""
    noise_key: np.ndarray
    """uint64 (B,): key of the erased box's noise."""
    lam: np.ndarray
    """float32 (B,): share of the sample itself after mixing, corrected to the true area of the box; equal within a pair."""
    box: np.ndarray
    """int32 (B, 4): y0, x0, y1, x1 taken from the partner; empty (zeros): blended by `lam`; equal within a pair."""


class Plan:
    """The plan of one data set under one `PlanSpec`.

    sizes: int (N, 2), height and width of every training image, in the order of the index.
    Raises ValueError when the data set is too small for the number of repeats.
    """

    def __init__(self, spec: PlanSpec, sizes: np.ndarray) -> None:
        self.spec = spec
        self.sizes = np.ascontiguousarray(sizes, dtype=np.int32)
        pairs = self.num_images // 2
        _require(pairs >= spec.repeats, "repeats", spec.repeats, f"at most {pairs} with {self.num_images} training images")
        self._order = functools.lru_cache(maxsize=2)(self._permutation)

    @property
    def num_images(self) -> int:
        return len(self.sizes)

    def fingerprint(self) -> str:
        """SHA-256 over everything that decides the draws of `draw`; DropPath's rates are the student's, not part of it."""
        facts = {"version": VERSION, "spec": dataclasses.asdict(self.spec), "images": self.num_images}
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
        digest.update(self.sizes.tobytes())
        return digest.hexdigest()

    def steps_per_epoch(self, batch_size: int) -> int:
        """Whole global batches in an epoch of about N samples, copies included (deit: samplers.py, RASampler)."""
        _require(0 < batch_size <= self.num_images, "batch_size", batch_size, f"1 to {self.num_images} (the training images)")
        return self.num_images // batch_size

    def ordinals(self, step: int, batch_size: int, rank: int = 0, world_size: int = 1) -> np.ndarray:
        """int64 (batch_size / world_size,): the samples of one rank in one step, pairs side by side.

        Raises ValueError unless batch_size is a multiple of 2 * world_size: a pair never crosses ranks.
        """
        share = 2 * world_size
        _require(batch_size > 0 and batch_size % share == 0, "batch_size", batch_size, f"multiples of {share}")
        units = np.arange(step * batch_size // 2, (step + 1) * batch_size // 2, dtype=np.int64)
        mine = units[units % world_size == rank]
        return (2 * mine[:, None] + np.arange(2)).reshape(-1)

    def images(self, epoch: int, ordinals: np.ndarray) -> np.ndarray:
        """int64 (B,): which image stands at each ordinal."""
        unit, side = np.divmod(ordinals, 2)
        pair, view = np.divmod(unit, self.spec.repeats)
        return self._order(epoch)[2 * ((pair + side * view) % (self.num_images // 2)) + side]

    def draw(self, epoch: int, ordinals: np.ndarray) -> Draws:
        """Everything that happens to the samples at `ordinals` (int64 (B,)) of an epoch."""
        spec, words = self.spec, self._words(epoch)
        image = self.images(epoch, ordinals)
        ops, op_args = _draw_ops(spec, ordinals, words)
        noise = words(ordinals, _NOISE)
        lam, box = _draw_mix(spec, ordinals, words)
        return Draws(
            image=image,
            crop=_draw_crop(spec, self.sizes[image], ordinals, words),
            flip=uniform(words(ordinals, _FLIP)[0]) < spec.hflip,
            ops=ops,
            op_args=op_args,
            erase=_draw_erase(spec, ordinals, words),
            noise_key=noise[0] << np.uint64(32) | noise[1],
            lam=lam,
            box=box,
        )

    def keep(self, epoch: int, ordinals: np.ndarray, rates: Sequence[float]) -> np.ndarray:
        """bool (B, depth, 2): whether DropPath (arXiv 1603.09382) keeps the attention and the MLP branch of each block.

        rates: the probability of dropping, one a block.
        """
        depth = len(rates)
        words = self._words(epoch)(ordinals, _DROP_PATH, blocks=-(-depth // 2))
        draws = uniform(words[: 2 * depth]).T.reshape(len(ordinals), depth, 2)
        return draws >= np.asarray(rates)[:, None]

    def _words(self, epoch: int) -> Callable[..., np.ndarray]:
        return functools.partial(random_words, self.spec.seed, epoch)

    def _permutation(self, epoch: int) -> np.ndarray:
        words = self._words(epoch)(np.arange(self.num_images), _ORDER)
        return np.argsort(words[0] << np.uint64(32) | words[1], kind="stable")


def _require(ok: bool, name: str, value: object, allowed: str) -> None:
    if not ok:
        raise ValueError(f"{name}: got {value}, allowed is {allowed}")


def _within(u: np.ndarray, low: float, high: float) -> np.ndarray:
    return low + u * (high - low)


def _quantised(x: np.ndarray) -> np.ndarray:
    """To multiples of 2^-24: logarithms differ in the last bit between machines, the plan must not."""
    return np.round(x * 2.0**24) * 2.0**-24


def _random_box(
    words: Callable[..., np.ndarray],
    ordinals: np.ndarray,
    purpose: int,
    sizes: np.ndarray,
    area: tuple[float, float],
    ratio: tuple[float, float],
    wide: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes of random area and log-uniform aspect that fit, at most ten tries each: the crop's and the erasing's law.

    sizes: (B, 2) height and width to fit in; ratio is width / height if `wide` (and the box may be as large as the image),
    else height / width (and it must be smaller). Returns int32 (B, 4) y, x, height, width and bool (B,), whether one fitted.
    """
    boxes = np.zeros((len(ordinals), 4), np.int32)
    found = np.zeros(len(ordinals), bool)
    todo = np.arange(len(ordinals))
    for attempt in range(_TRIES):
        u = uniform(words(ordinals[todo], purpose, first=attempt))
        limit = sizes[todo]
        target = _within(u[0], *area) * limit[:, 0] * limit[:, 1]
        aspect = np.exp(_within(u[1], math.log(ratio[0]), math.log(ratio[1])))
        along, across = np.rint(_quantised(np.sqrt(target * aspect))), np.rint(_quantised(np.sqrt(target / aspect)))
        size = np.stack((across, along) if wide else (along, across), 1).astype(np.int32)
        size = np.maximum(size, 1) if wide else size
        fits = ((size <= limit) if wide else (size < limit)).all(1)
        start = np.floor(u[2:].T * (limit - size + 1)).astype(np.int32)
        boxes[todo[fits]] = np.concatenate((start, size), 1)[fits]
        found[todo[fits]] = True
        todo = todo[~fits]
        if not todo.size:
            break
    return boxes, found


def _draw_crop(spec: PlanSpec, sizes: np.ndarray, ordinals: np.ndarray, words: Callable[..., np.ndarray]) -> np.ndarray:
    boxes, found = _random_box(words, ordinals, _CROP, sizes, spec.scale, spec.ratio, wide=True)
    return np.where(found[:, None], boxes, _centre_crop(sizes, spec.ratio))


def _centre_crop(sizes: np.ndarray, ratio: tuple[float, float]) -> np.ndarray:
    """int32 (B, 4): the largest centred window whose aspect lies within `ratio`, for images where ten tries failed."""
    height, width = sizes[:, 0], sizes[:, 1]
    h = np.where(width / height < ratio[0], np.rint(width / ratio[0]), height).astype(np.int32)
    w = np.where(width / height > ratio[1], np.rint(height * ratio[1]), width).astype(np.int32)
    h, w = np.clip(h, 1, height), np.clip(w, 1, width)
    return np.stack(((height - h) // 2, (width - w) // 2, h, w), 1).astype(np.int32)


def _draw_ops(spec: PlanSpec, ordinals: np.ndarray, words: Callable[..., np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """RandAugment: int32 ops and float64 arguments, both (B, layers)."""
    if spec.ra_layers == 0:
        return np.zeros((len(ordinals), 0), np.int32), np.zeros((len(ordinals), 0))
    u = uniform(words(ordinals, _AUGMENT, blocks=2 * spec.ra_layers)).reshape(spec.ra_layers, 8, -1)
    ops = np.floor(u[:, 0] * len(OPS)).astype(np.int32)
    if math.isinf(spec.ra_std):
        magnitude = u[:, 4] * spec.ra_magnitude
    else:
        magnitude = spec.ra_magnitude + spec.ra_std * normal(u[:, 4], u[:, 5])
    magnitude = _quantised(np.clip(magnitude, 0.0, spec.ra_max))
    args = op_arguments(ops, magnitude, negate=u[:, 2] > 0.5)
    applied = u[:, 1] < spec.ra_prob
    return np.where(applied, ops, -1).T.astype(np.int32), np.where(applied, args, 0.0).T


def op_arguments(ops: np.ndarray, magnitude: np.ndarray, negate: np.ndarray) -> np.ndarray:
    """float64: timm's argument for operations `ops` (index into OPS) at `magnitude` in [0, 10], of the same shape.

    The laws of timm's `_*_level_to_arg` functions of the increasing set; `negate` turns the signed ones round.
    """
    level = magnitude / 10.0
    signed = np.where(negate, -level, level)
    laws = {
        "Rotate": 30.0 * signed,
        "PosterizeIncreasing": 4 - np.trunc(level * 4),
        "SolarizeIncreasing": 256 - np.minimum(256, np.trunc(level * 256)),
        "SolarizeAdd": np.minimum(128, np.trunc(level * 110)),
        **dict.fromkeys(("ShearX", "ShearY"), 0.3 * signed),
        **dict.fromkeys(("TranslateXRel", "TranslateYRel"), 0.45 * signed),
    }
    enhance = np.maximum(0.1, 1.0 + 0.9 * signed)
    laws |= {f"{name}Increasing": enhance for name in ("Color", "Contrast", "Brightness", "Sharpness")}
    nothing = np.zeros_like(level)
    return np.choose(ops, [laws.get(name, nothing) for name in OPS])


def _draw_erase(spec: PlanSpec, ordinals: np.ndarray, words: Callable[..., np.ndarray]) -> np.ndarray:
    """int32 (B, 4): the erased box; zeros where nothing is erased."""
    erase = np.zeros((len(ordinals), 4), np.int32)
    chosen = np.flatnonzero(uniform(words(ordinals, _ERASE)[0]) < spec.reprob) if spec.reprob else np.empty(0, np.int64)
    if chosen.size:
        sizes = np.full((chosen.size, 2), spec.input_size)
        boxes, found = _random_box(words, ordinals[chosen], _ERASE_BOX, sizes, spec.erase_area, spec.erase_ratio, wide=False)
        # a box that rounds to no pixels erases nothing
        erase[chosen[found]] = np.where(boxes[found][:, 2:].all(1)[:, None], boxes[found], 0)
    return erase


def _draw_mix(spec: PlanSpec, ordinals: np.ndarray, words: Callable[..., np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """float32 lam (B,) and int32 box (B, 4), drawn once for each group of `mixup_group` samples."""
    if not spec.mixes:
        return np.ones(len(ordinals), np.float32), np.zeros((len(ordinals), 4), np.int32)
    groups, row = np.unique(ordinals // spec.mixup_group, return_inverse=True)
    u = uniform(words(groups, _MIX))
    cutting, blending = spec.cutmix > 0 or spec.cutmix_minmax is not None, spec.mixup > 0
    cut = (u[0] < spec.mixup_switch_prob) if cutting and blending else np.full(groups.size, cutting)
    alpha = np.where(cut, spec.cutmix or 1.0, spec.mixup or 1.0)
    lam = np.where(u[1] < spec.mixup_prob, _beta(words, groups, alpha), 1.0)
    box = np.where((cut & (lam < 1.0))[:, None], _cut_box(spec, lam, words(groups, _MIX, first=1)), 0)
    box = np.where(((box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1]) > 0)[:, None], box, 0)
    area = (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1]) / spec.input_size**2
    lam = np.where(cut, 1.0 - area, lam)
    return lam.astype(np.float32)[row], box.astype(np.int32)[row]


def _cut_box(spec: PlanSpec, lam: np.ndarray, words: np.ndarray) -> np.ndarray:
    """CutMix's box, (G, 4) y0, x0, y1, x1: side sqrt(1 - lam) about a uniform centre, clipped; or `cutmix_minmax`'s."""
    size, u = spec.input_size, uniform(words)
    if spec.cutmix_minmax:
        low, high = (int(size * bound) for bound in spec.cutmix_minmax)
        side = np.floor(low + u[2:] * max(high - low, 1))
        start = np.floor(u[:2] * (size - side))
        return np.concatenate((start, start + side)).T.astype(np.int32)
    half = np.trunc(_quantised(size * np.sqrt(1.0 - lam))) // 2
    centre = np.floor(u[:2] * size)
    return np.clip(np.concatenate((centre - half, centre + half)), 0, size).T.astype(np.int32)


def _beta(words: Callable[..., np.ndarray], ordinals: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Beta(alpha, alpha) draws, float64 (G,): G1 / (G1 + G2) of two Gamma(alpha) draws, in logarithms."""
    first, second = (_log_gamma_draw(words, 2 * ordinals + side, alpha) for side in range(2))
    return _quantised(1.0 / (1.0 + np.exp(np.clip(second - first, -700, 700))))


def _log_gamma_draw(words: Callable[..., np.ndarray], ordinals: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Logarithm of Gamma(alpha) draws (Marsaglia and Tsang, ACM TOMS 26(3), 2000, with their boost for alpha < 1)."""
    d = alpha + 1.0 - 1.0 / 3.0  # always draw Gamma(alpha + 1), then boost by U^(1 / alpha): right for every alpha
    drawn = np.zeros(len(ordinals))
    todo, attempt = np.arange(len(ordinals)), 0
    while todo.size:
        u = uniform(words(ordinals[todo], _MIX_GAMMA, first=attempt))
        x = normal(u[0], u[1])
        v = (1.0 + x / np.sqrt(9.0 * d[todo])) ** 3
        log_v = np.log(np.maximum(v, 1e-300))
        ok = (v > 0) & (np.log(u[2]) < 0.5 * x**2 + d[todo] * (1.0 - v + log_v))
        log_gamma = np.log(d[todo]) + log_v + np.log(u[3]) / alpha[todo]
        drawn[todo[ok]] = log_gamma[ok]
        todo, attempt = todo[~ok], attempt + 1
    return drawn
