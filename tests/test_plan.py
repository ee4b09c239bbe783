"""The plan's invariants, over seeds, epochs, world sizes and batch sizes, and its distributions at fixed seeds."""

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
from scipy import stats

from fastdeit.philox import philox4x32
from fastdeit.plan import OPS, Draws, Plan, PlanSpec, op_arguments

WORLDS = (1, 2, 3, 4, 8, 16, 32)


def make_plan(images: int = 1000, **spec: Any) -> Plan:
    sizes = np.random.default_rng(5).integers(150, 600, (images, 2))
    return Plan(PlanSpec(**spec), sizes)


def rows(draws: Draws, chosen: np.ndarray) -> Draws:
    return Draws(**{field.name: getattr(draws, field.name)[chosen] for field in dataclasses.fields(draws)})


def assert_equal(left: Draws, right: Draws) -> None:
    for field in dataclasses.fields(Draws):
        np.testing.assert_array_equal(getattr(left, field.name), getattr(right, field.name), err_msg=field.name)


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


@pytest.mark.parametrize(("seed", "epoch", "repeats"), itertools.product((0, 4294967295), (0, 299), (1, 2, 3)))
def test_each_unit_comes_once_and_steps_do_not_depend_on_the_world(seed: int, epoch: int, repeats: int) -> None:
    plan = make_plan(seed=seed, repeats=repeats)
    for batch in (192, 384):
        steps = plan.steps_per_epoch(batch)
        assert steps == 1000 // batch
        everything = []
        for step in range(steps):
            alone = plan.ordinals(step, batch)
            everything.append(alone)
            for world in WORLDS:
                ranks = [plan.ordinals(step, batch, rank, world) for rank in range(world)]
                assert all(len(mine) == batch // world for mine in ranks)
                assert sorted(np.concatenate(ranks)) == sorted(alone)
                for mine in ranks:
                    np.testing.assert_array_equal(mine[1::2], mine[::2] + 1)  # a pair stays together
        np.testing.assert_array_equal(np.concatenate(everything), np.arange(steps * batch))


@pytest.mark.parametrize("repeats", [1, 2, 3, 7])
@pytest.mark.parametrize("images", [20, 21, 1000])
def test_no_image_meets_itself_and_copies_have_other_partners(images: int, repeats: int) -> None:
    plan = make_plan(images, repeats=repeats)
    pairs = images // 2
    ordinals = np.arange(2 * pairs * repeats)
    for epoch in (0, 1, 17):
        image = plan.images(epoch, ordinals)
        met = np.stack((image[::2], image[1::2]), 1)
        assert (met[:, 0] != met[:, 1]).all()
        assert len(np.unique(met, axis=0)) == len(met)
        counts = np.bincount(image, minlength=images)
        assert sorted(np.unique(counts)) in ([repeats], [0, repeats])
        assert (counts == 0).sum() == images % 2
        copies = image[::2].reshape(pairs, repeats)
        assert (copies == copies[:, :1]).all()


def test_order_changes_with_seed_and_epoch() -> None:
    ordinals = np.arange(100)
    orders = [make_plan(seed=seed).images(epoch, ordinals) for seed, epoch in itertools.product((0, 1), (0, 1))]
    assert len({tuple(order) for order in orders}) == 4


@pytest.mark.parametrize("group", [2, 6, 256])
def test_draws_are_the_same_alone_in_a_batch_and_after_a_jump(group: int) -> None:
    plan, again = make_plan(mixup_group=group, reprob=0.5), make_plan(mixup_group=group, reprob=0.5)
    ordinals = np.arange(700)
    whole, keep = plan.draw(3, ordinals), plan.keep(3, ordinals, (0.0, 0.3, 0.6))
    shuffled = np.random.default_rng(0).permutation(700)
    assert_equal(again.draw(3, ordinals[shuffled]), rows(whole, shuffled))
    np.testing.assert_array_equal(again.keep(3, ordinals[shuffled], (0.0, 0.3, 0.6)), keep[shuffled])
    for single in (0, 1, 333, 699):
        assert_equal(again.draw(3, ordinals[single : single + 1]), rows(whole, np.array([single])))


def test_every_purpose_has_numbers_of_its_own() -> None:
    plan = make_plan(4000, reprob=1.0)
    draws = plan.draw(0, np.arange(4000))
    numbers = {
        "flip": draws.flip,
        "op 0": draws.ops[:, 0],
        "op 1": draws.ops[:, 1],
        "erase y": draws.erase[:, 0],
        "crop y": draws.crop[:, 0],
        "lam": draws.lam,
        "noise": draws.noise_key.astype(np.float64),
        "keep": plan.keep(0, np.arange(4000), (0.5,))[:, 0, 0],
    }
    for (one, left), (two, right) in itertools.combinations(numbers.items(), 2):
        assert abs(np.corrcoef(left.astype(float), right.astype(float))[0, 1]) < 0.06, (one, two)


def test_boxes_lie_inside_and_lam_is_the_true_area() -> None:
    plan = make_plan(3000)
    for epoch in range(3):
        draws = plan.draw(epoch, np.arange(3000))
        sizes = plan.sizes[draws.image]
        assert (draws.crop[:, :2] >= 0).all() and (draws.crop[:, 2:] >= 1).all()
        assert (draws.crop[:, :2] + draws.crop[:, 2:] <= sizes).all()
        assert (draws.erase[:, :2] >= 0).all() and (draws.erase[:, :2] + draws.erase[:, 2:] <= 224).all()
        assert (draws.box >= 0).all() and (draws.box <= 224).all()
        area = (draws.box[:, 2] - draws.box[:, 0]) * (draws.box[:, 3] - draws.box[:, 1])
        cut = area > 0
        np.testing.assert_array_equal(draws.lam[cut], (1 - area[cut] / 224**2).astype(np.float32))
        assert ((draws.lam >= 0) & (draws.lam <= 1)).all()
        np.testing.assert_array_equal(draws.lam[::2], draws.lam[1::2])
        np.testing.assert_array_equal(draws.box[::2], draws.box[1::2])


def test_groups_share_the_mix_and_the_draws_of_other_groups_differ() -> None:
    draws = make_plan(2048, mixup_group=256).draw(0, np.arange(2048))
    lam = draws.lam.reshape(8, 256)
    assert (lam == lam[:, :1]).all() and (draws.box.reshape(8, 256, 4) == draws.box.reshape(8, 256, 4)[:, :1]).all()
    assert len(np.unique(lam[:, 0])) == 8


@pytest.fixture(scope="module")
def many() -> Draws:
    return make_plan(40_000).draw(0, np.arange(40_000))


def test_operations_gates_and_magnitudes(many: Draws) -> None:
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
    law = stats.truncnorm(-18, 2, 9, 0.5)
    assert stats.kstest(below, law.cdf).pvalue > 0.001
    assert abs((magnitude == 10).mean() - stats.norm.sf(2)) < 0.015


def test_crop_follows_its_law(many: Draws) -> None:
    plan = make_plan(40_000)
    area = many.crop[:, 2] * many.crop[:, 3] / plan.sizes[many.image].prod(1)
    aspect = many.crop[:, 3] / many.crop[:, 2]
    assert area.min() > 0.078 and area.max() <= 1
    assert aspect.min() > 0.70 and aspect.max() < 1.40  # rounding to pixels widens [3/4, 4/3]
    # on a large square almost every first try fits, and the law is plain
    square = Plan(PlanSpec(scale=(0.08, 0.5)), np.full((20_000, 2), 4000))
    crop = square.draw(0, np.arange(20_000)).crop
    assert stats.kstest(crop[:, 2] * crop[:, 3] / 4000**2, stats.uniform(0.08, 0.42).cdf).pvalue > 0.001
    log_aspect = np.log(crop[:, 3] / crop[:, 2])
    assert stats.kstest(log_aspect, stats.uniform(np.log(3 / 4), np.log(16 / 9)).cdf).pvalue > 0.001


def test_images_where_nothing_fits_get_the_centre() -> None:
    plan = Plan(PlanSpec(scale=(1.0, 1.0)), np.array([[100, 1000], [1000, 100]] * 20))
    draws = plan.draw(0, np.arange(40))
    expected = {0: (0, 433, 100, 133), 1: (433, 0, 133, 100)}
    for image, crop in zip(draws.image, draws.crop, strict=True):
        assert tuple(crop) == expected[image % 2]


def test_tiny_images_keep_a_pixel() -> None:
    plan = Plan(PlanSpec(), np.ones((40, 2), int))
    np.testing.assert_array_equal(plan.draw(0, np.arange(40)).crop, [[0, 0, 1, 1]] * 40)


def test_flip_and_erase_follow_their_laws(many: Draws) -> None:
    assert stats.binomtest(int(many.flip.sum()), many.flip.size, 0.5).pvalue > 0.001
    erased = many.erase[:, 2] > 0
    assert stats.binomtest(int(erased.sum()), erased.size, 0.25).pvalue > 0.001
    box = many.erase[erased]
    area = box[:, 2] * box[:, 3] / 224**2
    # tall and wide boxes of a large area do not fit and are drawn again, so only the small ones follow the plain law
    small = area[area < 0.15]
    assert stats.kstest(small, stats.uniform(0.02, 0.13).cdf).statistic < 0.03
    log_ratio = np.log(box[area < 0.1][:, 2] / box[area < 0.1][:, 3])
    assert stats.kstest(log_ratio, stats.uniform(np.log(0.3), -2 * np.log(0.3)).cdf).statistic < 0.03


@pytest.mark.parametrize("alpha", [0.1, 0.8, 1.0, 4.0])
def test_mixup_follows_beta(alpha: float) -> None:
    lam = make_plan(20_000, mixup=alpha, cutmix=0.0).draw(1, np.arange(20_000)).lam[::2]
    edges = np.array([0.0, 0.01, 0.05, 0.2, 0.4, 0.6, 0.8, 0.95, 0.99, 1.0])
    expected = len(lam) * np.diff(stats.beta(alpha, alpha).cdf(edges))
    likely = expected > 5
    counts = np.histogram(lam, edges)[0]
    assert stats.chisquare(counts[likely], expected[likely] * counts[likely].sum() / expected[likely].sum()).pvalue > 0.001


def test_cutmix_is_chosen_half_the_time_and_its_boxes_follow_beta(many: Draws) -> None:
    cut = (many.box[::2, 2] > 0) | (many.lam[::2] == 1)
    assert stats.binomtest(int(cut.sum()), cut.size, 0.5).pvalue > 0.001
    box = many.box[::2][many.box[::2, 2] > 0]
    inside = ((box > 0) & (box < 224)).all(1)
    drawn = (box[inside, 2] - box[inside, 0]) / 224  # not clipped: the side is sqrt(1 - lam) of the image
    assert (
        np.diff(box[inside].reshape(-1, 2, 2), axis=1)[:, 0, 0] == np.diff(box[inside].reshape(-1, 2, 2), axis=1)[:, 0, 1]
    ).all()
    assert drawn.min() > 0 and drawn.max() < 1
    # clipping takes part of the box away: the mean share of the sample itself exceeds the one half drawn
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


def test_keep_bits_follow_the_rates() -> None:
    rates = (0.0, 0.05, 0.1, 0.5, 0.9)
    keep = make_plan(20_000).keep(0, np.arange(20_000), rates)
    assert keep.shape == (20_000, 5, 2) and keep[:, 0].all()
    for block, rate in enumerate(rates[1:], 1):
        for branch in range(2):
            assert stats.binomtest(int((~keep[:, block, branch]).sum()), 20_000, rate).pvalue > 1e-4
    assert make_plan().keep(0, np.arange(4), ()).shape == (4, 0, 2)


def test_arguments_equal_timm() -> None:
    from timm.data import auto_augment as timm_augment

    levels = np.linspace(0, 10, 41)
    for index, name in enumerate(OPS):
        law = timm_augment.LEVEL_TO_ARG[name]
        for level in levels:
            mine = {float(op_arguments(np.array([index]), np.array([level]), np.array([sign]))[0]) for sign in (True, False)}
            theirs = {float(law(level, {})[0]) for _ in range(40)} if law else {0.0}
            assert all(min(abs(value - other) for other in theirs) < 1e-12 for value in mine), (name, level)
            assert len(mine) == len(theirs), (name, level)


def test_fingerprint_knows_everything_that_decides_the_draws() -> None:
    prints = {make_plan().fingerprint(), make_plan(1001).fingerprint()}
    changes: dict[str, Any] = {
        "seed": 1,
        "repeats": 3,
        "reprob": 0.3,
        "mixup_group": 4,
        "remode": "rand",
        "ra_std": 0.4,
        "input_size": 192,
    }
    prints |= {make_plan(**{name: value}).fingerprint() for name, value in changes.items()}
    assert len(prints) == 2 + len(changes)
    assert make_plan().fingerprint() == make_plan().fingerprint()


@pytest.mark.parametrize(
    "wrong",
    [
        {"seed": -1},
        {"repeats": 0},
        {"scale": (0.5, 0.1)},
        {"hflip": 1.5},
        {"mixup_group": 3},
        {"remode": "blur"},
        {"mixup": -1.0},
        {"cutmix_minmax": (0.5, 2.0)},
    ],
)
def test_wrong_values_are_named(wrong: dict[str, Any]) -> None:
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=name) as failure:
        make_plan(**wrong)
    assert str(value) in str(failure.value)


def test_batches_that_do_not_divide_are_refused() -> None:
    plan = make_plan()
    with pytest.raises(ValueError, match="multiples of 6"):
        plan.ordinals(0, 64, 0, 3)
    with pytest.raises(ValueError, match="1 to 1000"):
        plan.steps_per_epoch(2000)
    with pytest.raises(ValueError, match="repeats"):
        make_plan(4, repeats=3)
