"""The plan's distributions against draws of timm's and torchvision's own classes: two-sample
tests at fixed seeds.

The references run as they are, with only their last call, the one that touches pixels, replaced by
a recorder. A right distribution fails one test in 10,000 for an unlucky seed;
`test_a_wrong_rand_augment_is_detected` shows what a wrong one does.
"""

import functools
import random
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from timm.data.auto_augment import auto_augment_transform, rand_augment_transform
from timm.data.mixup import Mixup, cutmix_bbox_and_lam
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision import transforms

from fastdeit.plan.operations import OPS, RAND_AUGMENT_OPS
from fastdeit.plan.plan import Plan, SampleParams
from fastdeit.plan.spec import PlanSpec

COUNT = 20_000
ALPHA = 1e-4  # of a wrong alarm


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)
    yield
    random.setstate(before[0])
    np.random.set_state(before[1])
    torch.set_rng_state(before[2])


def distribution_p(ours: Any, theirs: Any) -> float:
    """Return the p-value of both samples having the same distribution."""
    return float(
        stats.ks_2samp(np.asarray(ours, float), np.asarray(theirs, float), method="asymp").pvalue
    )


def share_p(ours: Any, theirs: Any) -> float:
    """Return the p-value of the values, of which there are few, being equally frequent in both
    samples."""
    counts = Counter(np.asarray(ours).tolist()), Counter(np.asarray(theirs).tolist())
    table = np.array([[count[value] for value in counts[0] | counts[1]] for count in counts])
    return float(stats.chi2_contingency(table).pvalue) if table.shape[1] > 1 else 1.0


def draw(size: tuple[int, int] = (375, 500), count: int = COUNT, **spec: Any) -> SampleParams:
    plan = Plan(PlanSpec(seed=11, repeats=1, **spec), np.tile(size, (count, 1)))
    return plan.draw(0, np.arange(count))


class Recorder:
    """In the place of an operation: notes its name and argument."""

    def __init__(self, name: str, seen: list[tuple[str, float]]) -> None:
        self.name, self.seen = name, seen

    def __call__(self, image: Any, *args: float, **options: Any) -> Any:
        self.seen.append((self.name, float(args[0]) if args else 0.0))
        return image


@functools.cache
def timm_rand_augment(text: str, count: int = COUNT) -> tuple[tuple[tuple[str, float], ...], ...]:
    """Return the operations and arguments of each of `count` images."""
    transform = rand_augment_transform(text, {"translate_const": 100, "img_mean": (124, 116, 104)})
    seen: list[tuple[str, float]] = []
    for op in transform.ops:
        op.aug_fn = Recorder(op.name, seen)
    images = []
    for _ in range(count):
        transform(None)
        images.append(tuple(seen))
        seen.clear()
    return tuple(images)


def our_rand_augment(drawn: SampleParams) -> list[tuple[tuple[str, float], ...]]:
    rows = zip(drawn.ops.tolist(), drawn.op_args.tolist(), strict=True)
    return [tuple((OPS[op], arg) for op, arg in zip(*row, strict=True) if op >= 0) for row in rows]


def magnitudes(images: Any) -> list[float]:
    """Return the magnitudes of the operations whose argument determines them."""
    inverse: dict[str, Callable[[float], float]] = {"Rotate": lambda arg: abs(arg) / 3}
    inverse |= dict.fromkeys(("ShearX", "ShearY"), lambda arg: abs(arg) / 0.03)
    inverse |= dict.fromkeys(("TranslateXRel", "TranslateYRel"), lambda arg: abs(arg) / 0.045)
    enhancements = (
        "ColorIncreasing",
        "ContrastIncreasing",
        "BrightnessIncreasing",
        "SharpnessIncreasing",
    )
    inverse |= dict.fromkeys(enhancements, lambda arg: abs(arg - 1) / 0.09)
    # both sides round in the last bit; at the upper end many are equal
    return [
        round(inverse[name](arg), 6) for image in images for name, arg in image if name in inverse
    ]


def rand_augment_p(ours: Any, theirs: Any) -> dict[str, float]:
    """Return the p-value of everything that RandAugment draws."""
    names = [[name for image in side for name, _ in image] for side in (ours, theirs)]
    found = {
        "open gates": share_p([len(image) for image in ours], [len(image) for image in theirs]),
        "operations": share_p(*names),
        "magnitude": distribution_p(magnitudes(ours), magnitudes(theirs)),
    }
    for op in RAND_AUGMENT_OPS:
        args = [
            [arg for image in side for name, arg in image if name == op] for side in (ours, theirs)
        ]
        found[op] = distribution_p(*args)
    return found


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("rand-m9-mstd0.5-inc1", {}),
        (
            "rand-m7-n1-mstd101-p0.8-inc1",
            {"ra_layers": 1, "ra_magnitude": 7.0, "ra_std": float("inf"), "ra_prob": 0.8},
        ),
        (
            "rand-m11-n3-mstd2-mmax12-inc1",
            {"ra_layers": 3, "ra_magnitude": 11.0, "ra_std": 2.0, "ra_max": 12.0},
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_rand_augment_has_timms_distribution(text: str, spec: dict[str, Any]) -> None:
    found = rand_augment_p(our_rand_augment(draw(**spec)), timm_rand_augment(text))
    assert min(found.values()) > ALPHA, found


@pytest.mark.parametrize(
    ("wrong", "noticed"),
    [
        ({"ra_prob": 0.45}, "open gates"),
        ({"ra_std": 0.6}, "magnitude"),
        ({"ra_magnitude": 8.9}, "magnitude"),
    ],
    ids=["gate", "deviation", "magnitude"],
)
def test_a_wrong_rand_augment_is_detected(wrong: dict[str, Any], noticed: str) -> None:
    found = rand_augment_p(
        our_rand_augment(draw(**wrong)), timm_rand_augment("rand-m9-mstd0.5-inc1")
    )
    assert found[noticed] < ALPHA**2
    assert found["operations"] > ALPHA


def timm_crop(size: tuple[int, int], count: int) -> np.ndarray:
    """Return (count, 4) y, x, height, width."""
    image, transform = Image.new("L", size[::-1]), RandomResizedCropAndInterpolation(224)
    return np.array(
        [transform.get_params(image, transform.scale, transform.ratio) for _ in range(count)]
    )


@pytest.mark.parametrize("size", [(375, 500), (60, 600), (500, 60), (24, 30)], ids=str)
def test_resized_crop_has_timms_distribution(size: tuple[int, int]) -> None:
    ours, theirs = draw(size, 8000).crop, timm_crop(size, 8000)
    found = {
        f"column {column}": distribution_p(ours[:, column], theirs[:, column])
        for column in range(4)
    }
    found["area"] = distribution_p(ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3])
    found["aspect"] = distribution_p(ours[:, 2] / ours[:, 3], theirs[:, 2] / theirs[:, 3])
    fallback = Counter(map(tuple, theirs.tolist())).most_common(1)[0][0]
    ours_fell, theirs_fell = (ours == fallback).all(1), (theirs == fallback).all(1)
    found["fallback"] = share_p(ours_fell, theirs_fell)
    assert max(size) < 10 * min(size) or theirs_fell.mean() > 0.5
    assert min(found.values()) > ALPHA, found


def test_a_wrong_crop_is_detected() -> None:
    ours, theirs = draw(scale=(0.12, 1.0)).crop, timm_crop((375, 500), COUNT)
    assert distribution_p(ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3]) < ALPHA**2


def test_simple_crop_has_torchvisions_distribution() -> None:
    side, size = 48, (75, 100)
    ours = draw(size, input_size=side, simple_crop=True).resize
    resized = transforms.Resize(side)(torch.zeros(1, *size)).shape[1:]
    assert (ours[:, :2] == np.array(resized)).all()
    padded = torch.zeros(1, resized[0] + 8, resized[1] + 8)
    theirs = (
        np.array([transforms.RandomCrop.get_params(padded, (side, side))[:2] for _ in range(COUNT)])
        - 4
    )
    assert share_p(ours[:, 2], theirs[:, 0]) > ALPHA and set(ours[:, 2]) == set(theirs[:, 0])
    assert share_p(ours[:, 3], theirs[:, 1]) > ALPHA and set(ours[:, 3]) == set(theirs[:, 1])


def test_flips_have_torchvisions_distribution() -> None:
    flip, row = transforms.RandomHorizontalFlip(0.5), torch.tensor([[[0, 1]]])
    assert share_p(draw().flip, [bool(flip(row)[0, 0, 0]) for _ in range(COUNT)]) > ALPHA


class Erased:
    """In the place of an image: notes the box that is written to, zeros without one."""

    box = (0, 0, 0, 0)

    def __setitem__(self, place: tuple[slice, slice, slice], pixels: torch.Tensor) -> None:
        _, y, x = place
        self.box = (y.start, x.start, y.stop - y.start, x.stop - x.start)


def timm_erased(side: int, probability: float) -> np.ndarray:
    transform = RandomErasing(probability, mode="const", device="cpu")
    images = [Erased() for _ in range(COUNT)]
    for image in images:
        transform._erase(image, 3, side, side, torch.float32)
    return np.array([image.box for image in images])


def erase_p(ours: np.ndarray, theirs: np.ndarray) -> dict[str, float]:
    found = {"rate": share_p(ours[:, 2] > 0, theirs[:, 2] > 0)}
    ours, theirs = ours[ours[:, 2] > 0], theirs[theirs[:, 2] > 0]
    found |= {
        f"column {column}": distribution_p(ours[:, column], theirs[:, column])
        for column in range(4)
    }
    found["area"] = distribution_p(ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3])
    return found | {"aspect": distribution_p(ours[:, 2] / ours[:, 3], theirs[:, 2] / theirs[:, 3])}


@pytest.mark.parametrize("side", [224, 32])
def test_erased_boxes_have_timms_distribution(side: int) -> None:
    found = erase_p(draw(input_size=side).erase, timm_erased(side, 0.25))
    assert min(found.values()) > ALPHA, found


def test_a_wrong_erasing_is_detected() -> None:
    found = erase_p(draw(reprob=0.22, erase_ratio=(0.3, 2.5)).erase, timm_erased(224, 0.25))
    assert found["rate"] < ALPHA**2 and found["aspect"] < ALPHA**2


def timm_mix(side: int, **options: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the flag cut (n,), corrected lam (n,), and box (n, 4) y0, x0, y1, x1."""
    transform = Mixup(**{"mixup_alpha": 0.8, "cutmix_alpha": 1.0} | options)
    cuts, lams, boxes = np.zeros(COUNT, bool), np.ones(COUNT), np.zeros((COUNT, 4), int)
    for i in range(COUNT):
        lams[i], cuts[i] = transform._params_per_batch()
        if cuts[i] and lams[i] < 1:
            (y0, y1, x0, x1), lams[i] = cutmix_bbox_and_lam(
                (3, side, side), lams[i], transform.cutmix_minmax
            )
            boxes[i] = y0, x0, y1, x1
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return cuts & (area > 0), lams, boxes


def mix_p(
    side: int, ours: SampleParams, theirs: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> dict[str, float]:
    box, lam = ours.box[::2], ours.lam[::2]
    cut, (their_cut, their_lam, their_box) = box[:, 2] > 0, theirs
    found = {
        "cut": share_p(cut, their_cut),
        "blended": share_p(~cut & (lam < 1), ~their_cut & (their_lam < 1)),
    }
    found["lam, blended"] = distribution_p(lam[~cut], their_lam[~their_cut])
    found["lam, cut"] = distribution_p(lam[cut], their_lam[their_cut])
    for name, values in (
        ("y0", lambda b: b[:, 0]),
        ("x1", lambda b: b[:, 3]),
        ("height", lambda b: b[:, 2] - b[:, 0]),
    ):
        left, right = values(box[cut]), values(their_box[their_cut])
        found[name] = distribution_p(left, right)
        found[f"odd {name}"] = share_p(left % 2, right % 2)
        if side < 64:
            found[f"exact {name}"] = share_p(left, right)
    return found


@pytest.mark.parametrize(
    ("side", "ours", "theirs"),
    [
        (224, {}, {}),
        (32, {}, {}),
        (32, {"mixup": 0.0, "mixup_prob": 0.6}, {"mixup_alpha": 0.0, "prob": 0.6}),
        (224, {"mixup": 0.2, "mixup_switch_prob": 0.3}, {"mixup_alpha": 0.2, "switch_prob": 0.3}),
        (32, {"cutmix_minmax": (0.2, 0.7)}, {"cutmix_minmax": (0.2, 0.7)}),
    ],
    ids=["224", "32", "cutmix", "switch", "minmax"],
)
def test_mixing_has_timms_distribution(
    side: int, ours: dict[str, Any], theirs: dict[str, Any]
) -> None:
    found = mix_p(side, draw(count=2 * COUNT, input_size=side, **ours), timm_mix(side, **theirs))
    assert min(found.values()) > ALPHA, found


def test_a_wrong_mix_is_detected() -> None:
    found = mix_p(224, draw(count=2 * COUNT, mixup=1.1, mixup_switch_prob=0.45), timm_mix(224))
    assert found["lam, blended"] < ALPHA**2 and found["cut"] < ALPHA**2
    assert found["lam, cut"] > ALPHA


@pytest.mark.parametrize("jitter", [0.3, 1.4])
def test_colour_jitter_has_torchvisions_distribution(jitter: float) -> None:
    drawn = draw(ra_layers=0, color_jitter=jitter)
    transform = transforms.ColorJitter(jitter, jitter, jitter)
    seen = [
        transform.get_params(transform.brightness, transform.contrast, transform.saturation, None)
        for _ in range(COUNT)
    ]
    names = ("BrightnessIncreasing", "ContrastIncreasing", "ColorIncreasing")
    theirs = ["".join(str(int(i)) for i in order if i < 3) for order, *_ in seen]
    place = {OPS.index(name): str(i) for i, name in enumerate(names)}
    assert share_p(["".join(place[op] for op in row) for row in drawn.ops.tolist()], theirs) > ALPHA
    for i, name in enumerate(names):
        ours = drawn.op_args[drawn.ops == OPS.index(name)]
        assert len(ours) == COUNT
        assert distribution_p(ours, [row[1 + i] for row in seen]) > ALPHA


class Filtered:
    """In the place of an image: notes the radius of the filter."""

    radius = 0.0

    def filter(self, kernel: Any) -> "Filtered":
        self.radius = kernel.radius
        return self


def test_three_augment_has_deits_distribution() -> None:
    """timm's `3a` policy is DeiT III's: its solarising threshold is 128, and no colour stays at its
    magnitude of grey."""
    transform = auto_augment_transform("3a", {"img_mean": (124, 116, 104)})
    seen: list[tuple[str, float]] = []
    radii = []
    for (op,) in transform.policy:
        if op.name == "GaussianBlurRand":
            blur = op.aug_fn
        op.aug_fn = Recorder(op.name, seen)
    for _ in range(COUNT):
        transform(None)
        if seen[-1][0] == "GaussianBlurRand":
            radii.append(blur(Filtered(), seen[-1][1]).radius)
    assert {arg for name, arg in seen if name == "Solarize"} == {128.0}
    ours = draw(ra_layers=0, three_augment=True)
    names = {
        "Desaturate": "Grayscale",
        "Solarize": "SolarizeIncreasing",
        "GaussianBlurRand": "GaussianBlur",
    }
    assert share_p([OPS[op] for op in ours.ops[:, 0]], [names[name] for name, _ in seen]) > ALPHA
    assert distribution_p(ours.op_args[ours.ops == OPS.index("GaussianBlur")], radii) > ALPHA
    assert set(ours.op_args[ours.ops == OPS.index("SolarizeIncreasing")]) == {128.0}
