"""The plan's invariants, over seeds, epochs, world sizes, batch sizes and images that cannot be
read."""

import dataclasses
import hashlib
import itertools
from typing import Any

import numpy as np
import pytest

from fastdeit.plan.plan import VERSION, Plan, SampleParams
from fastdeit.plan.spec import PlanSpec

WORLDS = (1, 2, 3, 4, 8, 16, 32)


def make_plan(images: int = 1000, **spec: Any) -> Plan:
    sizes = np.random.default_rng(5).integers(150, 600, (images, 2))
    return Plan(PlanSpec(**spec), sizes)


def rows(draws: SampleParams, chosen: np.ndarray) -> SampleParams:
    return SampleParams(
        **{field.name: getattr(draws, field.name)[chosen] for field in dataclasses.fields(draws)}
    )


def assert_equal(left: SampleParams, right: SampleParams) -> None:
    for field in dataclasses.fields(SampleParams):
        np.testing.assert_array_equal(
            getattr(left, field.name), getattr(right, field.name), err_msg=field.name
        )


@pytest.mark.parametrize(
    ("seed", "epoch", "repeats"), itertools.product((0, 4294967295), (0, 299), (1, 2, 3))
)
def test_each_unit_comes_once_and_steps_do_not_depend_on_the_world(
    seed: int, epoch: int, repeats: int
) -> None:
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
                # a rank has neighbours, so a pair stays together
                np.testing.assert_array_equal(np.concatenate(ranks), alone)
        np.testing.assert_array_equal(np.concatenate(everything), np.arange(steps * batch))


@pytest.mark.parametrize("world", WORLDS)
def test_ranks_of_older_runs_take_every_other_pair(world: int) -> None:
    plan = make_plan()
    for rank in range(world):
        mine = plan.ordinals(2, 192, rank, world, alternating=True)
        pairs = np.arange(192, 288)[(np.arange(192, 288) % world) == rank]
        np.testing.assert_array_equal(mine, np.stack((2 * pairs, 2 * pairs + 1), 1).reshape(-1))


@pytest.mark.parametrize("repeats", [2, 3])
def test_copies_of_an_image_are_on_one_rank(repeats: int) -> None:
    """All but those of a few images at the ends of a rank's share."""
    plan = make_plan(4000, repeats=repeats)
    for rank in range(8):
        images = plan.images(0, plan.ordinals(1, 2048, rank, 8))
        counts = np.unique(images, return_counts=True)[1]
        assert len(counts) > 80 and (counts < repeats).sum() < 2 * repeats


@pytest.mark.parametrize("repeats", [1, 2, 3, 7])
@pytest.mark.parametrize("images", [20, 21, 1000])
def test_no_image_is_mixed_with_itself_and_copies_have_other_partners(
    images: int, repeats: int
) -> None:
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
    orders = [
        make_plan(seed=seed).images(epoch, ordinals)
        for seed, epoch in itertools.product((0, 1), (0, 1))
    ]
    assert len({tuple(order) for order in orders}) == 4


THREE: dict[str, Any] = {
    "ra_layers": 0,
    "three_augment": True,
    "color_jitter": 0.3,
    "simple_crop": True,
}


def test_the_draws_of_this_version_are_the_golden_ones() -> None:
    """A change of a digest must raise VERSION."""
    digests = []
    for spec in (
        {"reprob": 0.5},
        THREE | {"mixup_group": 6, "repeats": 3},
        {"cutmix_minmax": (0.2, 0.8), "color_jitter": 0.4},
    ):
        plan = make_plan(seed=3, **spec)
        draws, keep = plan.draw(2, np.arange(600)), plan.keep(2, np.arange(600), (0.1, 0.3, 0.5))
        arrays = [getattr(draws, field.name) for field in dataclasses.fields(draws)]
        digests.append(
            hashlib.sha256(b"".join(array.tobytes() for array in (*arrays, keep))).hexdigest()[:12]
        )
    assert (VERSION, digests) == (2, ["966fefb1e3bc", "c454e30ec3ff", "85d58b1b8649"])


@pytest.mark.parametrize("group", [2, 6, 256])
@pytest.mark.parametrize("spec", [{"reprob": 0.5}, THREE], ids=["deit", "deit3"])
def test_draws_are_the_same_alone_in_a_batch_and_after_a_jump(
    spec: dict[str, Any], group: int
) -> None:
    plan, again = make_plan(mixup_group=group, **spec), make_plan(mixup_group=group, **spec)
    ordinals = np.arange(700)
    whole, keep = plan.draw(3, ordinals), plan.keep(3, ordinals, (0.0, 0.3, 0.6))
    shuffled = np.random.default_rng(0).permutation(700)
    assert_equal(again.draw(3, ordinals[shuffled]), rows(whole, shuffled))
    np.testing.assert_array_equal(
        again.keep(3, ordinals[shuffled], (0.0, 0.3, 0.6)), keep[shuffled]
    )
    for single in (0, 1, 333, 699):
        assert_equal(again.draw(3, ordinals[single : single + 1]), rows(whole, np.array([single])))


def test_draws_of_different_purposes_are_independent() -> None:
    plan = make_plan(4000, reprob=1.0)
    draws = plan.draw(0, np.arange(4000))
    other = make_plan(4000, **THREE).draw(0, np.arange(4000))
    numbers = {
        "flip": draws.flip,
        "op 0": draws.ops[:, 0],
        "op 1": draws.ops[:, 1],
        "erase y": draws.erase[:, 0],
        "crop y": draws.crop[:, 0],
        "lam": draws.lam,
        "noise": draws.noise_key.astype(np.float64),
        "three": other.ops[:, 0],
        "jitter": other.op_args[:, 1],
        "keep": plan.keep(0, np.arange(4000), (0.5,))[:, 0, 0],
    }
    for (one, left), (two, right) in itertools.combinations(numbers.items(), 2):
        assert abs(np.corrcoef(left.astype(float), right.astype(float))[0, 1]) < 0.06, (one, two)


def test_boxes_lie_inside_and_lam_is_the_true_area() -> None:
    plan = make_plan(3000)
    for epoch in range(3):
        draws = plan.draw(epoch, np.arange(3000))
        sizes = plan.sizes[draws.image_index]
        assert (draws.crop[:, :2] >= 0).all() and (draws.crop[:, 2:] >= 1).all()
        assert (draws.crop[:, :2] + draws.crop[:, 2:] <= sizes).all()
        assert (draws.erase[:, :2] >= 0).all() and (
            draws.erase[:, :2] + draws.erase[:, 2:] <= 224
        ).all()
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
    assert (lam == lam[:, :1]).all() and (
        draws.box.reshape(8, 256, 4) == draws.box.reshape(8, 256, 4)[:, :1]
    ).all()
    assert len(np.unique(lam[:, 0])) == 8


def test_the_fingerprint_covers_everything_that_decides_the_draws() -> None:
    prints = {make_plan().fingerprint(), make_plan(1001).fingerprint()}
    changes: dict[str, Any] = {
        "seed": 1,
        "repeats": 3,
        "reprob": 0.3,
        "mixup_group": 4,
        "remode": "rand",
        "ra_std": 0.4,
        "input_size": 192,
        "color_jitter": 0.1,
        "simple_crop": True,
    }
    prints |= {make_plan(**{name: value}).fingerprint() for name, value in changes.items()}
    assert len(prints) == 2 + len(changes)
    plan = make_plan()
    plan.exclude([3])
    assert plan.fingerprint() == make_plan().fingerprint()


@pytest.mark.parametrize(
    ("wrong", "shown"),
    [
        ({"seed": -1}, "-1"),
        ({"repeats": 0}, "0"),
        ({"scale": (0.5, 0.1)}, "0.5 0.1"),
        ({"hflip": 1.5}, "1.5"),
        ({"mixup_group": 3}, "3"),
        ({"remode": "blur"}, "'blur'"),
        ({"mixup": -1.0}, "-1.0"),
        ({"cutmix_minmax": (0.5, 2.0)}, "0.5 2.0"),
        ({"color_jitter": -0.1}, "-0.1"),
    ],
)
def test_wrong_values_are_named(wrong: dict[str, Any], shown: str) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=name) as failure:
        make_plan(**wrong)
    assert f"(got {shown})" in str(failure.value)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"three_augment": True}, "ra_layers must be 0 with three_augment"),
        (
            {"simple_crop": True, "input_size": 4},
            "input_size must be 5 or more with simple_crop",
        ),
    ],
    ids=["three_augment", "simple_crop"],
)
def test_values_that_exclude_each_other_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_plan(**wrong)


def test_batches_that_do_not_divide_are_refused() -> None:
    plan = make_plan()
    with pytest.raises(ValueError, match="a multiple of 6"):
        plan.ordinals(0, 64, 0, 3)
    with pytest.raises(ValueError, match="1 to 1000"):
        plan.steps_per_epoch(2000)
    with pytest.raises(ValueError, match="repeats"):
        make_plan(4, repeats=3)


def excluding(plan: Plan, rows: Any) -> Plan:
    plan.exclude(rows)
    return plan


@pytest.mark.parametrize("spec", [{}, THREE], ids=["deit", "deit3"])
@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("images", [60, 61])
def test_excluded_images_are_replaced_on_their_side_and_others_keep_their_draws(
    images: int, repeats: int, spec: dict[str, Any]
) -> None:
    bad = np.random.default_rng(images).choice(images, 20, replace=False)
    plan, plain = (
        excluding(make_plan(images, repeats=repeats, **spec), bad),
        make_plan(images, repeats=repeats, **spec),
    )
    ordinals = np.arange(images // 2 * 2 * repeats)
    for epoch in range(6):
        before, after = plain.draw(epoch, ordinals), plan.draw(epoch, ordinals)
        hit = np.isin(before.image_index, bad)
        assert hit.any() and not np.isin(after.image_index, bad).any()
        assert_equal(rows(after, ~hit), rows(before, ~hit))
        assert not np.intersect1d(after.image_index[::2], after.image_index[1::2]).size
        for name in ("flip", "ops", "op_args", "erase", "noise_key", "lam", "box"):
            np.testing.assert_array_equal(getattr(after, name), getattr(before, name))
        sizes = plan.sizes[after.image_index]
        assert (after.crop[:, :2] + after.crop[:, 2:] <= sizes).all()


def test_the_next_good_image_of_the_side_takes_the_place() -> None:
    plan = make_plan(10, repeats=1)
    order = plan.images(4, np.arange(10))
    plan.exclude(order[[0, 2, 9, 5]])
    expected = order[[4, 1, 4, 3, 4, 7, 6, 7, 8, 1]]
    np.testing.assert_array_equal(plan.images(4, np.arange(10)), expected)


def test_exclusion_depends_on_nothing_but_the_set() -> None:
    bad = np.random.default_rng(0).choice(1000, 300, replace=False)
    at_once, one_by_one = excluding(make_plan(), bad), make_plan()
    one_by_one.draw(1, np.arange(4))  # an order that was kept is forgotten
    for part in np.array_split(bad[::-1], 7):
        one_by_one.exclude(part)
    one_by_one.exclude(bad[:5].tolist())
    one_by_one.exclude([])
    np.testing.assert_array_equal(one_by_one.excluded, np.sort(bad))
    assert one_by_one.excluded.dtype == np.int64
    whole = at_once.draw(1, at_once.ordinals(2, 192))
    for world in (2, 3, 8):
        for rank in range(world):
            mine = one_by_one.ordinals(2, 192, rank, world)
            assert_equal(one_by_one.draw(1, mine), rows(whole, mine - 2 * 192))
    assert_equal(
        one_by_one.draw(1, np.array([555])),
        rows(at_once.draw(1, np.arange(550, 560)), np.array([5])),
    )


def test_exclusion_that_leaves_nothing_is_refused() -> None:
    plan = make_plan(10, repeats=1)
    for wrong in ([10], [-1, 3]):
        with pytest.raises(ValueError, match="rows 0 to 9"):
            plan.exclude(wrong)
    with pytest.raises(ValueError, match="at least 2 of 10 images must remain"):
        plan.exclude(range(9))
    assert plan.excluded.size == 0
    plan.exclude(plan.images(4, np.arange(1, 10, 2)))
    with pytest.raises(ValueError, match="side 1 of epoch 4"):
        plan.draw(4, np.arange(2))
