"""The distributions of the plan: the generator's published vectors, the shape of every
distribution, and its edges."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import RandomResizedCrop

from fastdeit.plan.operations import OPS, RAND_AUGMENT_OPS, THREE_OPS, op_arguments
from fastdeit.plan.philox import philox4x32, random_words, stream_words
from fastdeit.plan.plan import Plan, SampleParams
from fastdeit.plan.spec import PlanSpec


def make_plan(images: int = 1000, **spec: Any) -> Plan:
    sizes = np.random.default_rng(5).integers(150, 600, (images, 2))
    return Plan(PlanSpec(**spec), sizes)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        (0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (0xFFFFFFFF, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    ],
)
def test_philox_gives_the_published_vectors(word: int, expected: tuple[int, ...]) -> None:
    counter = (np.full(1, word, np.uint64),) * 4
    assert tuple(int(out[0]) for out in philox4x32(counter, (word, word))) == expected


@pytest.fixture(scope="module")
def many() -> SampleParams:
    return make_plan(40_000).draw(0, np.arange(40_000))


def test_operations_gates_and_magnitudes_have_their_distributions(many: SampleParams) -> None:
    applied = many.ops >= 0
    assert stats.binomtest(int(applied.sum()), applied.size, 0.5).pvalue > 0.001
    both = applied.all(1).mean()
    assert abs(both - 0.25) < 0.01  # the two gates are independent
    assert stats.chisquare(np.bincount(many.ops[applied], minlength=15)).pvalue > 0.001
    rotated = many.op_args[many.ops == OPS.index("Rotate")]
    assert stats.binomtest(int((rotated > 0).sum()), rotated.size, 0.5).pvalue > 0.001
    magnitude = np.abs(rotated) / 3
    assert magnitude.max() <= 10
    below = magnitude[magnitude < 10]
    distribution = stats.truncnorm(-18, 2, 9, 0.5)
    assert stats.kstest(below, distribution.cdf).pvalue > 0.001
    assert abs((magnitude == 10).mean() - stats.norm.sf(2)) < 0.015


def test_crops_have_their_distribution(many: SampleParams) -> None:
    plan = make_plan(40_000)
    area = many.crop[:, 2] * many.crop[:, 3] / plan.sizes[many.image_index].prod(1)
    aspect = many.crop[:, 3] / many.crop[:, 2]
    assert area.min() > 0.078 and area.max() <= 1
    assert aspect.min() > 0.70 and aspect.max() < 1.40  # rounding to pixels widens [3/4, 4/3]
    # on a large square almost every first try fits, and the distribution is simple
    square = Plan(PlanSpec(scale=(0.08, 0.5)), np.full((20_000, 2), 4000))
    crop = square.draw(0, np.arange(20_000)).crop
    assert (
        stats.kstest(crop[:, 2] * crop[:, 3] / 4000**2, stats.uniform(0.08, 0.42).cdf).pvalue
        > 0.001
    )
    log_aspect = np.log(crop[:, 3] / crop[:, 2])
    assert stats.kstest(log_aspect, stats.uniform(np.log(3 / 4), np.log(16 / 9)).cdf).pvalue > 0.001


def test_images_where_nothing_fits_get_the_centre() -> None:
    plan = Plan(PlanSpec(scale=(1.0, 1.0)), np.array([[100, 1000], [1000, 100]] * 20))
    draws = plan.draw(0, np.arange(40))
    expected = {0: (0, 433, 100, 133), 1: (433, 0, 133, 100)}
    for image, crop in zip(draws.image_index, draws.crop, strict=True):
        assert tuple(crop) == expected[image % 2]


def test_centre_of_an_elongated_image_is_rounded_as_torchvision_rounds_it() -> None:
    # nothing fits: a crop of nearly the whole area has an aspect that these images have not
    scale, ratio = (0.9, 1.0), (3 / 4, 4 / 3)
    sizes = [size for side in range(20, 60) for size in ((side, 9 * side), (9 * side, side))]
    plan = Plan(PlanSpec(scale=scale, ratio=ratio, repeats=1), np.array(sizes))
    draws = plan.draw(0, np.arange(len(sizes)))
    expected = [
        RandomResizedCrop.get_params(torch.empty(3, *sizes[row]), list(scale), list(ratio))
        for row in draws.image_index
    ]
    np.testing.assert_array_equal(draws.crop, expected)


def test_tiny_images_keep_a_pixel() -> None:
    plan = Plan(PlanSpec(), np.ones((40, 2), int))
    np.testing.assert_array_equal(plan.draw(0, np.arange(40)).crop, [[0, 0, 1, 1]] * 40)


def test_flips_and_erased_boxes_have_their_distributions(many: SampleParams) -> None:
    assert stats.binomtest(int(many.flip.sum()), many.flip.size, 0.5).pvalue > 0.001
    erased = many.erase[:, 2] > 0
    assert stats.binomtest(int(erased.sum()), erased.size, 0.25).pvalue > 0.001
    box = many.erase[erased]
    area = box[:, 2] * box[:, 3] / 224**2
    # tall and wide boxes of a large area do not fit and are drawn again, so only the small ones
    # have the simple distribution
    small = area[area < 0.15]
    assert stats.kstest(small, stats.uniform(0.02, 0.13).cdf).statistic < 0.03
    log_ratio = np.log(box[area < 0.1][:, 2] / box[area < 0.1][:, 3])
    assert (
        stats.kstest(log_ratio, stats.uniform(np.log(0.3), -2 * np.log(0.3)).cdf).statistic < 0.03
    )


@pytest.mark.parametrize("alpha", [0.1, 0.8, 1.0, 4.0])
def test_mixup_has_a_beta_distribution(alpha: float) -> None:
    lam = make_plan(20_000, mixup=alpha, cutmix=0.0).draw(1, np.arange(20_000)).lam[::2]
    edges = np.array([0.0, 0.01, 0.05, 0.2, 0.4, 0.6, 0.8, 0.95, 0.99, 1.0])
    expected = len(lam) * np.diff(stats.beta(alpha, alpha).cdf(edges))
    likely = expected > 5
    counts = np.histogram(lam, edges)[0]
    assert (
        stats.chisquare(
            counts[likely], expected[likely] * counts[likely].sum() / expected[likely].sum()
        ).pvalue
        > 0.001
    )


def test_cutmix_is_chosen_half_the_time_and_its_boxes_have_a_beta_distribution(
    many: SampleParams,
) -> None:
    cut = (many.box[::2, 2] > 0) | (many.lam[::2] == 1)
    assert stats.binomtest(int(cut.sum()), cut.size, 0.5).pvalue > 0.001
    box = many.box[::2][many.box[::2, 2] > 0]
    inside = ((box > 0) & (box < 224)).all(1)
    drawn = (
        box[inside, 2] - box[inside, 0]
    ) / 224  # not clipped: the side is sqrt(1 - lam) of the image
    assert (
        np.diff(box[inside].reshape(-1, 2, 2), axis=1)[:, 0, 0]
        == np.diff(box[inside].reshape(-1, 2, 2), axis=1)[:, 0, 1]
    ).all()
    assert drawn.min() > 0 and drawn.max() < 1
    # clipping takes part of the box away: the mean share of the sample itself exceeds the one half
    # drawn
    assert many.lam[::2][cut].mean() > 0.5


def test_mix_can_be_off_or_rare() -> None:
    off = make_plan(mixup=0.0, cutmix=0.0).draw(0, np.arange(400))
    assert (off.lam == 1).all() and (off.box == 0).all()
    rare = make_plan(20_000, mixup_prob=0.3).draw(0, np.arange(20_000))
    assert stats.binomtest(int((rare.lam[::2] < 1).sum()), 10_000, 0.3).pvalue > 1e-4
    only_cut = make_plan(mixup=0.0).draw(0, np.arange(800))
    assert ((only_cut.box[:, 2] > 0) | (only_cut.lam == 1)).all()
    bounded = make_plan(cutmix_minmax=(0.2, 0.5), mixup=0.0).draw(0, np.arange(800)).box
    side = bounded[:, 2] - bounded[:, 0]
    assert side.min() >= 44 and side.max() <= 112


def test_drop_path_bits_have_the_given_rates() -> None:
    rates = (0.0, 0.05, 0.1, 0.5, 0.9)
    keep = make_plan(20_000).keep(0, np.arange(20_000), rates)
    assert keep.shape == (20_000, 5, 2) and keep[:, 0].all()
    for block, rate in enumerate(rates[1:], 1):
        for branch in range(2):
            assert stats.binomtest(int((~keep[:, block, branch]).sum()), 20_000, rate).pvalue > 1e-4
    assert make_plan().keep(0, np.arange(4), ()).shape == (4, 0, 2)


def test_arguments_equal_timms() -> None:
    from timm.data import auto_augment as timm_augment

    levels = np.linspace(0, 10, 41)
    for index, name in enumerate(RAND_AUGMENT_OPS):
        level_to_arg = timm_augment.LEVEL_TO_ARG[name]
        for level in levels:
            mine = {
                float(op_arguments(np.array([index]), np.array([level]), np.array([sign]))[0])
                for sign in (True, False)
            }
            theirs = (
                {float(level_to_arg(level, {})[0]) for _ in range(40)} if level_to_arg else {0.0}
            )
            assert all(min(abs(value - other) for other in theirs) < 1e-12 for value in mine), (
                name,
                level,
            )
            assert len(mine) == len(theirs), (name, level)


def test_streams_are_the_blocks_of_their_purposes() -> None:
    ordinals = np.array([0, 5, 2**33])
    words = stream_words(7, 3, ordinals, [(4, 0), (2, 9), (4, 1)])
    assert words.shape == (3, 4, 3)
    np.testing.assert_array_equal(
        words[[0, 2]].reshape(8, 3), random_words(7, 3, ordinals, 4, blocks=2)
    )
    np.testing.assert_array_equal(words[1], random_words(7, 3, ordinals, 2, first=9))


def test_three_augment_draws_each_of_its_operations() -> None:
    draws = make_plan(9000, ra_layers=0, three_augment=True).draw(0, np.arange(9000))
    assert (
        draws.ops.shape == (9000, 1)
        and draws.ops.dtype == np.int32
        and draws.op_args.dtype == np.float64
    )
    chosen = {OPS[op]: draws.op_args[draws.ops == op] for op in np.unique(draws.ops)}
    assert set(chosen) == set(THREE_OPS)
    assert stats.chisquare([len(args) for args in chosen.values()]).pvalue > 0.001
    assert (chosen["Grayscale"] == 0).all() and (chosen["SolarizeIncreasing"] == 128).all()
    assert stats.kstest(chosen["GaussianBlur"], stats.uniform(0.1, 1.9).cdf).pvalue > 0.001


@pytest.mark.parametrize(("jitter", "low"), [(0.3, 0.7), (1.5, 0.0)])
def test_jitter_takes_each_factor_once_in_any_order(jitter: float, low: float) -> None:
    draws = make_plan(9000, ra_layers=0, three_augment=True, color_jitter=jitter).draw(
        0, np.arange(9000)
    )
    assert draws.ops.shape == draws.op_args.shape == (9000, 4)
    jittered = [OPS.index(f"{name}Increasing") for name in ("Color", "Contrast", "Brightness")]
    np.testing.assert_array_equal(np.sort(draws.ops[:, 1:], 1), [sorted(jittered)] * 9000)
    orders = np.unique(draws.ops[:, 1:], axis=0, return_counts=True)[1]
    assert len(orders) == 6 and stats.chisquare(orders).pvalue > 0.001
    for op in jittered:
        factors = draws.op_args[:, 1:][draws.ops[:, 1:] == op]
        assert stats.kstest(factors, stats.uniform(low, 1 + jitter - low).cdf).pvalue > 0.001


def test_jitter_follows_rand_augment() -> None:
    alone, both = (make_plan(color_jitter=jitter).draw(0, np.arange(500)) for jitter in (0.0, 0.4))
    assert both.ops.shape == (500, 5)
    np.testing.assert_array_equal(both.ops[:, :2], alone.ops)
    np.testing.assert_array_equal(both.op_args[:, :2], alone.op_args)


def test_simple_crop_stays_within_the_padding() -> None:
    plan = make_plan(5000, input_size=64, simple_crop=True)
    draws = plan.draw(0, np.arange(5000))
    sizes = plan.sizes[draws.image_index]
    np.testing.assert_array_equal(draws.crop, np.concatenate((np.zeros_like(sizes), sizes), 1))
    assert draws.resize.dtype == np.int32
    resized, corner = draws.resize[:, :2], draws.resize[:, 2:]
    assert (resized.min(1) == 64).all()
    expected = [int(64 * max(size) / min(size)) for size in sizes.tolist()]
    np.testing.assert_array_equal(resized.max(1), expected)
    assert (corner >= -4).all() and (corner <= resized - 60).all()
    short = np.take_along_axis(corner, resized.argmin(1)[:, None], 1)[:, 0]
    assert stats.chisquare(np.bincount(short + 4, minlength=9)).pvalue > 0.001


def test_a_resized_crop_is_resized_to_the_whole_square() -> None:
    np.testing.assert_array_equal(
        make_plan(input_size=96).draw(0, np.arange(40)).resize, [[96, 96, 0, 0]] * 40
    )


def test_every_layer_draws_from_its_operations() -> None:
    for spec in (
        {"color_jitter": 0.2},
        {"ra_layers": 0, "three_augment": True, "color_jitter": 0.2},
        {"ra_layers": 3},
    ):
        plan = make_plan(3000, **spec)
        ops = plan.draw(0, np.arange(3000)).ops
        assert ops.shape[1] == plan.spec.layers == len(plan.spec.layer_ops)
        for layer, names in zip(ops.T, plan.spec.layer_ops, strict=True):
            assert {OPS[op] for op in np.unique(layer) if op >= 0} == set(names)


def test_no_layers_draw_no_operations() -> None:
    draws = make_plan(ra_layers=0).draw(0, np.arange(10))
    assert draws.ops.shape == draws.op_args.shape == (10, 0)
