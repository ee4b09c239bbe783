"""The check of a plan of 300 epochs: all samples of some epochs, and some of the others."""

from collections.abc import Iterator

import numpy as np

from benchmarks.imagenet.job import EPOCHS, Job
from fastdeit.plan.build import build_plan
from fastdeit.plan.digest import add_digests, sample_digests, show_digest
from fastdeit.plan.plan import Plan, SampleParams

_WHOLE = (0, 1, EPOCHS - 1)
"""The epochs of which every sample is drawn."""
_AT_ONCE = 2**14
_DROP_PATH = (0.0, 0.1)
"""The rates of the student's two blocks."""


def check_plan(job: Job, sizes: np.ndarray) -> dict[str, float | int | str]:
    """Check the plan of a rehearsal's training images; return facts by name.

    sizes: int32 (N, 2), height and width. Raises AssertionError for a condition that is not met.
    """
    plan = build_plan(job.config, sizes)
    digests = [_check_epoch(plan, epoch, job) for epoch in _WHOLE]
    for epoch in range(EPOCHS):
        _check_sample(plan, epoch)
    counts = {copies: count_images(job, sizes, copies) for copies in (2, 3)}
    return {
        "steps": plan.steps_per_epoch(job.batch),
        "images with 3 copies": counts[3],
        "images with 2 copies": counts[2],
        "digest of epoch 0": digests[0],
    }


def count_images(job: Job, sizes: np.ndarray, copies: int) -> int:
    """Return the number of different images in the steps of an epoch."""
    plan = build_plan(job.config.replace(augment={"aug_repeats": copies}), sizes)
    seen = np.zeros(len(sizes), bool)
    for ordinals in _split(job):
        seen[plan.images(0, ordinals)] = True
    return int(seen.sum())


def _split(job: Job) -> Iterator[np.ndarray]:
    """Yield the ordinals of all steps of an epoch."""
    last = job.steps * job.batch
    for first in range(0, last, _AT_ONCE):
        yield np.arange(first, min(first + _AT_ONCE, last))


def _check_epoch(plan: Plan, epoch: int, job: Job) -> str:
    """Check every sample of an epoch's steps; return their digest.

    Each image is there as often as planned, except at the end of the epoch, and its copies have
    different partners.
    """
    repeats = plan.spec.repeats
    times = np.zeros(plan.num_images, np.int64)
    digests = []
    for ordinals in _split(job):
        draws = plan.draw(epoch, ordinals)
        keep = plan.keep(epoch, ordinals, _DROP_PATH)
        steps = epoch * job.steps + ordinals // job.batch
        digests.append(np.sum(sample_digests(steps, epoch, ordinals, draws, keep)))
        times += np.bincount(draws.image_index, minlength=plan.num_images)
        _check_draws(draws, plan.sizes[draws.image_index], plan.spec.input_size)
    samples = job.steps * job.batch
    assert times.sum() == samples and times.max() == repeats
    # side 1 of the first and last pairs is shared with pairs beyond the epoch's end
    assert np.count_nonzero((times > 0) & (times < repeats)) <= 2 * repeats
    return show_digest(add_digests(*digests))


def _check_draws(draws: SampleParams, sizes: np.ndarray, side: int) -> None:
    """Check that crops are inside their images, boxes inside the output, and that pairs share their
    mixing."""
    y, x, height, width = draws.crop.T
    assert (draws.crop[:, :2] >= 0).all() and (draws.crop[:, 2:] > 0).all()
    assert (y + height <= sizes[:, 0]).all() and (x + width <= sizes[:, 1]).all()
    assert (draws.erase[:, :2] + draws.erase[:, 2:] <= side).all()
    assert (draws.lam[::2] == draws.lam[1::2]).all() and (draws.box[::2] == draws.box[1::2]).all()
    assert (draws.image_index[::2] != draws.image_index[1::2]).all()


def _check_sample(plan: Plan, epoch: int) -> None:
    """Check that the order of an epoch is a permutation, and some of its samples."""
    pairs = plan.num_images // 2 * 2
    random = np.random.default_rng(epoch)
    ordinals = np.sort(random.integers(0, pairs // 2, 512))[:, None] * 2 + np.arange(2)
    draws = plan.draw(epoch, ordinals.reshape(-1))
    _check_draws(draws, plan.sizes[draws.image_index], plan.spec.input_size)
