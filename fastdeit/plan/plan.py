"""The plan: what happens to each training sample, decided before anything is read.

Everything random on the data side is a pure function of (seed, epoch, ordinal), the ordinal being
the sample's place in the epoch's global order. Rank, world size, micro-batch, workers and time
never enter, so any step of any run can be computed alone and replayed on any number of devices.
Pure NumPy; the invariants are held by tests/plan/test_plan.py.

Order. Units of two samples: ordinal = 2 * unit + side, unit = p * repeats + view. With P = N // 2
pairs in the epoch's permutation, side 0 is image perm[2p] and side 1 is perm[2 * ((p + view) mod P)
+ 1]: the copies of an image are neighbours, each has another partner, and no image is mixed with
itself. Step t of global batch B takes the units [t*B/2, (t+1)*B/2); rank r of W takes those
congruent to r modulo W.

Exclusion. Images that could not be read are never drawn again (`Plan.exclude`): whoever would have
drawn one takes the next good image of its own side in the permutation, so the sides stay disjoint
and all other samples keep their draws. What a sample then is follows from (seed, epoch, ordinal,
the excluded images).

sampling.py has the laws and their sources; repeated augmentation is arXiv 1902.05509.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fastdeit.plan import sampling
from fastdeit.plan.philox import random_words, stream_words, uniform

VERSION = 2
"""Rises whenever the same spec would give other draws; part of the fingerprint."""


@dataclass(frozen=True)
class PlanSpec:
    """The distributions that the plan draws from. Defaults: DeiT (arXiv 2012.12877, table 9), two
    copies an image."""

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
    three_augment: bool = False
    """DeiT III's 3-Augment instead of RandAugment: always one of grey, solarise and blur."""
    color_jitter: float = 0.0
    """Brightness, contrast and saturation each times a factor in 1 -+ color_jitter, in a random
    order, after the others."""
    simple_crop: bool = False
    """DeiT III's simple random crop instead of the random resized crop; `scale` and `ratio` play no
    part then."""
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
    """Neighbouring samples that share lambda, mode and box: 2 is a pair, 256 is deit's layout on 4
    GPUs."""

    def __post_init__(self) -> None:
        _require(0 <= self.seed < 2**32, "seed", self.seed, "0 to 4294967295")
        _require(self.input_size >= 1, "input_size", self.input_size, "1 or more")
        _require(self.repeats >= 1, "repeats", self.repeats, "1 or more")
        _require(
            0 < self.scale[0] <= self.scale[1] <= 1, "scale", self.scale, "0 < low <= high <= 1"
        )
        _require(0 < self.ratio[0] <= self.ratio[1], "ratio", self.ratio, "0 < low <= high")
        for name in ("hflip", "ra_prob", "reprob", "mixup_prob", "mixup_switch_prob"):
            _require(
                0 <= getattr(self, name) <= 1, name, getattr(self, name), "a probability, 0 to 1"
            )
        for name in ("ra_layers", "ra_magnitude", "ra_std", "color_jitter", "mixup", "cutmix"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        _require(
            not (self.three_augment and self.ra_layers),
            "ra_layers",
            self.ra_layers,
            "0 with three_augment",
        )
        # the padding is a reflection of 4 pixels
        _require(
            not self.simple_crop or self.input_size > 4,
            "input_size",
            self.input_size,
            "5 or more with simple_crop",
        )
        _require(
            self.remode in ("const", "rand", "pixel"), "remode", self.remode, "const, rand, pixel"
        )
        group = self.mixup_group
        _require(group >= 2 and group % 2 == 0, "mixup_group", group, "an even number, 2 or more")
        low, high = self.cutmix_minmax or (0.1, 0.9)
        _require(0 < low <= high <= 1, "cutmix_minmax", self.cutmix_minmax, "0 < low <= high <= 1")

    @property
    def layer_ops(self) -> tuple[tuple[str, ...], ...]:
        """For each layer of operations the names out of sampling.OPS that it is drawn from:
        RandAugment's layers, or 3-Augment's one; then the colour jitter's three."""
        rand, three, jitter = (
            (sampling.RAND_AUGMENT_OPS,),
            (sampling.THREE_OPS,),
            (sampling.JITTER_OPS,),
        )
        return (
            rand * self.ra_layers
            + three * self.three_augment
            + 3 * jitter * (self.color_jitter > 0)
        )

    @property
    def layers(self) -> int:
        """Operations that a sample goes through."""
        return len(self.layer_ops)

    @property
    def mixes(self) -> bool:
        """Whether any sample is mixed at all."""
        return self.mixup_prob > 0 and (
            self.mixup > 0 or self.cutmix > 0 or self.cutmix_minmax is not None
        )


@dataclass(frozen=True)
class SampleParams:
    """What happens to B samples, a row each; boxes are in pixels."""

    image_index: np.ndarray
    """int64 (B,): row of the data set's index."""
    crop: np.ndarray
    """int32 (B, 4): y, x, height, width of the window in the stored image."""
    resize: np.ndarray
    """int32 (B, 4): height and width that the crop is resized to, then y and x of the window of
    input_size x input_size in that; it may start at -4 and reach 4 beyond, where the resized crop
    is continued by reflection (numpy's "reflect")."""
    flip: np.ndarray
    """bool (B,): mirrored left to right."""
    ops: np.ndarray
    """int32 (B, layers): index into sampling.OPS; -1 where the layer does nothing."""
    op_args: np.ndarray
    """float64 (B, layers): timm's argument of the operation, signed (degrees, bits, threshold,
    factor, fraction, radius); 0 if none."""
    erase: np.ndarray
    """int32 (B, 4): y, x, height, width in the output image; height 0 erases nothing."""
    noise_key: np.ndarray
    """uint64 (B,): key of the erased box's noise."""
    lam: np.ndarray
    """float32 (B,): share of the sample itself after mixing, corrected to the true area of the box;
    equal within a pair."""
    box: np.ndarray
    """int32 (B, 4): y0, x0, y1, x1 taken from the partner; empty (zeros): blended by `lam`; equal
    within a pair."""


class Plan:
    """The plan of one data set under one `PlanSpec`.

    sizes: int (N, 2), height and width of every training image, in the order of the index.
    Raises ValueError when the data set is too small for the number of repeats.
    """

    def __init__(self, spec: PlanSpec, sizes: np.ndarray) -> None:
        self.spec = spec
        self.sizes = np.ascontiguousarray(sizes, dtype=np.int32)
        self._excluded = np.zeros(0, np.int64)
        pairs = self.num_images // 2
        _require(
            pairs >= spec.repeats,
            "repeats",
            spec.repeats,
            f"at most {pairs} with {self.num_images} training images",
        )
        self._order = functools.lru_cache(maxsize=2)(self._readable_order)

    @property
    def num_images(self) -> int:
        return len(self.sizes)

    @property
    def excluded(self) -> np.ndarray:
        """int64, sorted: the images that are not drawn."""
        return self._excluded

    def exclude(self, rows: Sequence[int] | np.ndarray) -> None:
        """Never draw the images `rows` of the index again.

        Raises ValueError for a row that is not in the index, or when too few are left; `images` and
        `draw` raise it for an epoch one of whose sides has none left.
        """
        rows = np.unique(np.asarray(rows, np.int64))
        wrong = rows[(rows < 0) | (rows >= self.num_images)]
        _require(not wrong.size, "exclude", wrong.tolist(), f"rows 0 to {self.num_images - 1}")
        excluded = np.union1d(self._excluded, rows)
        left = self.num_images - excluded.size
        _require(
            left >= 2,
            "exclude",
            f"{excluded.size} images",
            f"at most {self.num_images - 2} of {self.num_images}",
        )
        self._excluded = excluded
        self._order.cache_clear()

    def fingerprint(self) -> str:
        """SHA-256 over everything that decides the draws of `draw`, but for excluded images;
        DropPath's rates are the student's, not part of it."""
        facts = {
            "version": VERSION,
            "spec": dataclasses.asdict(self.spec),
            "images": self.num_images,
        }
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
        digest.update(self.sizes.tobytes())
        return digest.hexdigest()

    def steps_per_epoch(self, batch_size: int) -> int:
        """Whole global batches in an epoch of about N samples, copies included (deit: samplers.py,
        RASampler)."""
        _require(
            0 < batch_size <= self.num_images,
            "batch_size",
            batch_size,
            f"1 to {self.num_images} (the training images)",
        )
        return self.num_images // batch_size

    def ordinals(
        self, step: int, batch_size: int, rank: int = 0, world_size: int = 1
    ) -> np.ndarray:
        """int64 (batch_size / world_size,): the samples of one rank in one step, pairs side by
        side.

        Raises ValueError unless batch_size is a multiple of 2 * world_size: a pair never crosses
        ranks.
        """
        share = 2 * world_size
        _require(
            batch_size > 0 and batch_size % share == 0,
            "batch_size",
            batch_size,
            f"multiples of {share}",
        )
        units = np.arange(step * batch_size // 2, (step + 1) * batch_size // 2, dtype=np.int64)
        mine = units[units % world_size == rank]
        return (2 * mine[:, None] + np.arange(2)).reshape(-1)

    def images(self, epoch: int, ordinals: np.ndarray) -> np.ndarray:
        """int64 (B,): which image stands at each ordinal."""
        unit, side = np.divmod(ordinals, 2)
        pair, view = np.divmod(unit, self.spec.repeats)
        return self._order(epoch)[2 * ((pair + side * view) % (self.num_images // 2)) + side]

    def draw(self, epoch: int, ordinals: np.ndarray) -> SampleParams:
        """Everything that happens to the samples at `ordinals` (int64 (B,)) of an epoch."""
        spec, words = self.spec, self._words(epoch)
        image = self.images(epoch, ordinals)
        streams = [
            (purpose, 0)
            for purpose in (sampling.CROP, sampling.FLIP, sampling.ERASE, sampling.NOISE)
        ]
        crop_words, flip_words, erase_words, noise = words(ordinals, streams)
        crop, resize = self._crop(words, ordinals, crop_words, self.sizes[image])
        ops, op_args = self._layers(words, ordinals)
        lam, box = self._mix(words, ordinals)
        size, area, ratio = spec.input_size, spec.erase_area, spec.erase_ratio
        return SampleParams(
            image_index=image,
            crop=crop,
            resize=resize,
            flip=uniform(flip_words[0]) < spec.hflip,
            ops=ops,
            op_args=op_args,
            erase=sampling.erase(words, ordinals, erase_words, size, spec.reprob, area, ratio),
            noise_key=noise[0] << np.uint64(32) | noise[1],
            lam=lam,
            box=box,
        )

    def keep(self, epoch: int, ordinals: np.ndarray, rates: Sequence[float]) -> np.ndarray:
        """bool (B, depth, 2): whether DropPath (arXiv 1603.09382) keeps the attention and the MLP
        branch of each block.

        rates: the probability of dropping, one a block.
        """
        depth = len(rates)
        words = random_words(
            self.spec.seed, epoch, ordinals, sampling.DROP_PATH, blocks=-(-depth // 2)
        )
        kept = uniform(words[: 2 * depth]) >= np.repeat(np.asarray(rates, float), 2)[:, None]
        return np.ascontiguousarray(kept.T).reshape(len(ordinals), depth, 2)

    def _words(self, epoch: int) -> sampling.RandomStream:
        return functools.partial(stream_words, self.spec.seed, epoch)

    def _crop(
        self,
        words: sampling.RandomStream,
        ordinals: np.ndarray,
        first: np.ndarray,
        sizes: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        size = self.spec.input_size
        if self.spec.simple_crop:
            return np.concatenate((np.zeros_like(sizes), sizes), 1), sampling.simple_crop(
                first, sizes, size
            )
        crop = sampling.resized_crop(
            words, ordinals, first, sizes, self.spec.scale, self.spec.ratio
        )
        return crop, np.tile(np.array([size, size, 0, 0], np.int32), (len(ordinals), 1))

    def _layers(
        self, words: sampling.RandomStream, ordinals: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """int32 operations and float64 arguments, both (B, spec.layers)."""
        spec, count = self.spec, len(ordinals)
        drawn = [(np.zeros((count, 0), np.int32), np.zeros((count, 0)))]
        if spec.ra_layers:
            magnitude = {
                "magnitude": spec.ra_magnitude,
                "deviation": spec.ra_std,
                "maximum": spec.ra_max,
            }
            drawn.append(
                sampling.rand_augment(
                    words, ordinals, layers=spec.ra_layers, prob=spec.ra_prob, **magnitude
                )
            )
        if spec.three_augment:
            drawn.append(sampling.three_augment(words, ordinals))
        if spec.color_jitter > 0:
            drawn.append(sampling.color_jitter(words, ordinals, spec.color_jitter))
        ops, args = zip(*drawn, strict=True)
        return np.concatenate(ops, 1), np.concatenate(args, 1)

    def _mix(
        self, words: sampling.RandomStream, ordinals: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """float32 lam (B,) and int32 box (B, 4), drawn once for each group of `mixup_group`
        samples."""
        spec = self.spec
        if not spec.mixes:
            return np.ones(len(ordinals), np.float32), np.zeros((len(ordinals), 4), np.int32)
        groups, row = np.unique(ordinals // spec.mixup_group, return_inverse=True)
        lam, box = sampling.mix(
            words,
            groups,
            size=spec.input_size,
            mixup=spec.mixup,
            cutmix=spec.cutmix,
            minmax=spec.cutmix_minmax,
            prob=spec.mixup_prob,
            switch_prob=spec.mixup_switch_prob,
        )
        return lam[row], box[row]

    def _readable_order(self, epoch: int) -> np.ndarray:
        """int64 (N,): the epoch's permutation of the images, each excluded one replaced by the next
        good one of its side."""
        words = random_words(self.spec.seed, epoch, np.arange(self.num_images), sampling.ORDER)
        order = np.argsort(words[0] << np.uint64(32) | words[1], kind="stable")
        if self._excluded.size:
            pairs = self.num_images // 2
            for side in range(2):
                images = order[side : 2 * pairs : 2]
                images[:] = _next_good(
                    images, np.isin(images, self._excluded), f"side {side} of epoch {epoch}"
                )
        return order


def _next_good(images: np.ndarray, bad: np.ndarray, place: str) -> np.ndarray:
    """Each bad image replaced by the first good one after it, going round at the end; place: for
    the error."""
    good = np.flatnonzero(~bad)
    _require(
        bool(good.size),
        "exclude",
        f"every image of {place}",
        "at least one good image on each side",
    )
    return images[good[np.searchsorted(good, np.arange(len(images))) % good.size]]


def _require(ok: bool, name: str, value: object, allowed: str) -> None:
    if not ok:
        raise ValueError(f"{name}: got {value}, allowed is {allowed}")
