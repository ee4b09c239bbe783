"""The plan: everything that happens to each training sample, decided before anything is read.

Everything random on the data side is a pure function of (seed, epoch, ordinal), the ordinal being
the sample's place in the epoch's global order. Rank, world size, micro-batch, workers and time
never enter, so any step of any run can be computed alone and replayed on any number of devices.
Pure NumPy; tests/plan/test_plan.py has the invariants.

Order. Units of two samples: ordinal = 2 * unit + side, unit = p * repeats + view. With P = N // 2
pairs in the epoch's permutation, side 0 is image perm[2p] and side 1 is perm[2 * ((p + view) mod P)
+ 1]: the copies of an image are neighbours, each has another partner, and no image is mixed with
itself. Step t of global batch B takes the units [t*B/2, (t+1)*B/2), and rank r of W the r-th of W
equal runs of them, so that most copies of an image are on one rank, in one micro-batch, and the
image is decoded once for them. The samples of a step do not depend on W.

Exclusion. Images that could not be read are never drawn again (`Plan.exclude`): a sample that would
have one takes the next good image of its own side in the permutation, so the sides stay disjoint
and all other samples keep their draws. A sample is then a function of (seed, epoch, ordinal, the
excluded images).

sampling.py has the distributions and their sources; repeated augmentation is arXiv 1902.05509.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fastdeit.config.parse import require_value
from fastdeit.plan import sampling
from fastdeit.plan.order import ImageOrders
from fastdeit.plan.philox import RandomStream, random_words, stream_words, uniform
from fastdeit.plan.spec import PlanSpec

VERSION = 2
"""Raised whenever the same spec would give other draws; part of the fingerprint."""
_LONG = 2**17  # images; the order of fewer takes less time than the start of a thread


@dataclass(frozen=True)
class SampleParams:
    """Parameters of B samples, a row each; boxes are in pixels."""

    image_index: np.ndarray
    """int64 (B,): row of the data set's index."""
    crop: np.ndarray
    """int32 (B, 4): y, x, height, width in the stored image."""
    resize: np.ndarray
    """int32 (B, 4): height and width that the crop is resized to, then y and x of the window of
    input_size x input_size in that; it may start at -4 and reach 4 beyond, where the resized crop
    is continued by reflection (numpy's "reflect")."""
    flip: np.ndarray
    """bool (B,): whether the image is mirrored left to right."""
    ops: np.ndarray
    """int32 (B, layers): number of the operation, its place in `OPERATIONS`; -1 where the layer
    does nothing."""
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
    """int32 (B, 4): y0, x0, y1, x1 of the box that is taken from the partner; zeros where the two
    images are blended by `lam` instead; equal within a pair."""


class Plan:
    """The plan of one data set under one `PlanSpec`.

    sizes: int (N, 2), height and width of every training image, in the order of the index.
    Raises ValueError when the data set is too small for the number of repeats.
    """

    def __init__(self, spec: PlanSpec, sizes: np.ndarray) -> None:
        self.spec = spec
        self.sizes = np.ascontiguousarray(sizes, dtype=np.int32)
        pairs = self.num_images // 2
        most = f"at most {pairs} with {self.num_images} training images"
        require_value(spec.repeats <= pairs, "repeats", spec.repeats, most)
        self._orders = ImageOrders(spec.seed, self.num_images)

    @property
    def num_images(self) -> int:
        """Return the number of training images, excluded ones included."""
        return len(self.sizes)

    @property
    def excluded(self) -> np.ndarray:
        """Return the images that are not drawn: int64, sorted."""
        return self._orders.excluded

    def exclude(self, rows: Sequence[int] | np.ndarray) -> None:
        """Exclude the images `rows` (int (n,)) of the index, beside those excluded before.

        Raises ValueError for a row that is not in the index, or when fewer than 2 images remain.
        `images` and `draw` raise it for an epoch in which one side has no image left.
        """
        rows = np.unique(np.asarray(rows, np.int64))
        wrong = rows[(rows < 0) | (rows >= self.num_images)]
        last = self.num_images - 1
        require_value(not wrong.size, "excluded images", wrong.tolist(), f"rows 0 to {last}")
        excluded = np.union1d(self.excluded, rows)
        if self.num_images - excluded.size < 2:
            raise ValueError(
                f"at least 2 of {self.num_images} images must remain ({excluded.size} are excluded)"
            )
        self._orders.exclude(excluded)

    def fingerprint(self) -> str:
        """Return a SHA-256 over everything that decides the draws of `draw`, except the excluded
        images. DropPath's rates belong to the student and are not in it."""
        facts = {
            "version": VERSION,
            "spec": dataclasses.asdict(self.spec),
            "images": self.num_images,
        }
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
        digest.update(self.sizes.data)
        return digest.hexdigest()

    def steps_per_epoch(self, batch_size: int) -> int:
        """Return the number of whole global batches in an epoch of about N samples, copies included
        (deit: samplers.py, RASampler). Raises ValueError unless batch_size is 1 to N."""
        allowed = f"1 to {self.num_images}, the number of training images"
        require_value(0 < batch_size <= self.num_images, "batch_size", batch_size, allowed)
        return self.num_images // batch_size

    def ordinals(
        self,
        step: int,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        *,
        alternating: bool = False,
    ) -> np.ndarray:
        """Return int64 (batch_size / world_size,): the samples of one rank in one step, pairs side
        by side.

        alternating: the rank takes every world_size-th pair, as in older runs, instead of
        neighbouring ones. Raises ValueError unless batch_size is a multiple of 2 * world_size, as
        both samples of a pair are on one rank.
        """
        share = 2 * world_size
        divides = batch_size > 0 and batch_size % share == 0
        require_value(divides, "batch_size", batch_size, f"a multiple of {share}")
        units = np.arange(step * batch_size // 2, (step + 1) * batch_size // 2, dtype=np.int64)
        if alternating:
            mine = units[units % world_size == rank]
        else:
            mine = units.reshape(world_size, -1)[rank]
        return (2 * mine[:, None] + np.arange(2)).reshape(-1)

    def prepare(self, epoch: int) -> None:
        """Start a thread that computes the epoch's order, so that the first `images` of the epoch
        need not wait; the order of a small data set is computed when it is asked for."""
        if self.num_images >= _LONG:
            self._orders.prepare(epoch)

    def images(self, epoch: int, ordinals: np.ndarray) -> np.ndarray:
        """Return int64 (B,): the image at each ordinal (int64 (B,)), a row of the index."""
        unit, side = np.divmod(ordinals, 2)
        pair, view = np.divmod(unit, self.spec.repeats)
        partner = (pair + side * view) % (self.num_images // 2)
        return self._orders.get(epoch)[2 * partner + side].astype(np.int64)

    def draw(self, epoch: int, ordinals: np.ndarray) -> SampleParams:
        """Return everything that happens to the samples at `ordinals` (int64 (B,)) of an epoch."""
        spec = self.spec
        stream = self._stream(epoch)
        image = self.images(epoch, ordinals)
        # four purposes in one call: cheaper than one by one
        purposes = (sampling.CROP, sampling.FLIP, sampling.ERASE, sampling.NOISE)
        crop_words, flip_words, erase_words, noise_words = stream(
            ordinals, [(purpose, 0) for purpose in purposes]
        )
        crop, resize = self._crop(stream, ordinals, crop_words, self.sizes[image])
        ops, op_args = self._layers(stream, ordinals)
        lam, box = self._mix(stream, ordinals)
        erase = sampling.erase(
            stream,
            ordinals,
            words=erase_words,
            size=spec.input_size,
            prob=spec.reprob,
            area=spec.erase_area,
            ratio=spec.erase_ratio,
        )
        return SampleParams(
            image_index=image,
            crop=crop,
            resize=resize,
            flip=uniform(flip_words[0]) < spec.hflip,
            ops=ops,
            op_args=op_args,
            erase=erase,
            noise_key=noise_words[0] << np.uint64(32) | noise_words[1],
            lam=lam,
            box=box,
        )

    def keep(self, epoch: int, ordinals: np.ndarray, rates: Sequence[float]) -> np.ndarray:
        """Return bool (B, depth, 2): whether DropPath (arXiv 1603.09382) keeps the attention and
        the MLP branch of each block.

        rates: the probability of dropping, one a block.
        """
        depth = len(rates)
        blocks = -(-depth // 2)  # four words a block, two words a layer
        words = random_words(self.spec.seed, epoch, ordinals, sampling.DROP_PATH, blocks=blocks)
        rate_of_word = np.repeat(np.asarray(rates, float), 2)[:, None]
        kept = uniform(words[: 2 * depth]) >= rate_of_word
        return np.ascontiguousarray(kept.T).reshape(len(ordinals), depth, 2)

    def _stream(self, epoch: int) -> RandomStream:
        return functools.partial(stream_words, self.spec.seed, epoch)

    def _crop(
        self,
        stream: RandomStream,
        ordinals: np.ndarray,
        words: np.ndarray,
        sizes: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return `SampleParams.crop` and `SampleParams.resize`."""
        spec = self.spec
        size = spec.input_size
        if spec.simple_crop:
            whole = np.concatenate((np.zeros_like(sizes), sizes), 1)
            return whole, sampling.simple_crop(words, sizes, size)
        crop = sampling.resized_crop(
            stream, ordinals, words=words, sizes=sizes, scale=spec.scale, ratio=spec.ratio
        )
        return crop, np.tile(np.array([size, size, 0, 0], np.int32), (len(ordinals), 1))

    def _layers(self, stream: RandomStream, ordinals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return int32 operations and float64 arguments, both (B, spec.layers)."""
        spec = self.spec
        count = len(ordinals)
        ops = [np.zeros((count, 0), np.int32)]
        args = [np.zeros((count, 0))]
        drawn = []
        if spec.ra_layers:
            rand_augment = sampling.rand_augment(
                stream,
                ordinals,
                layers=spec.ra_layers,
                magnitude=spec.ra_magnitude,
                deviation=spec.ra_std,
                maximum=spec.ra_max,
                prob=spec.ra_prob,
            )
            drawn.append(rand_augment)
        if spec.three_augment:
            drawn.append(sampling.three_augment(stream, ordinals))
        if spec.color_jitter > 0:
            drawn.append(sampling.color_jitter(stream, ordinals, spec.color_jitter))
        for layer_ops, layer_args in drawn:
            ops.append(layer_ops)
            args.append(layer_args)
        return np.concatenate(ops, 1), np.concatenate(args, 1)

    def _mix(self, stream: RandomStream, ordinals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return float32 lam (B,) and int32 box (B, 4), drawn once for each group of `mixup_group`
        samples."""
        spec = self.spec
        count = len(ordinals)
        if not spec.mixes:
            return np.ones(count, np.float32), np.zeros((count, 4), np.int32)
        groups, row = np.unique(ordinals // spec.mixup_group, return_inverse=True)
        lam, box = sampling.mix(
            stream,
            groups,
            size=spec.input_size,
            mixup=spec.mixup,
            cutmix=spec.cutmix,
            minmax=spec.cutmix_minmax,
            prob=spec.mixup_prob,
            switch_prob=spec.mixup_switch_prob,
        )
        return lam[row], box[row]
