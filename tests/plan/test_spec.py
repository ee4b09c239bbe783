"""The distributions of the plan: one set of defaults, and the line that describes them."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from fastdeit.config.schema import Config
from fastdeit.plan.build import build_plan
from fastdeit.plan.plan import Plan
from fastdeit.plan.spec import PlanSpec

SIZES = np.full((40, 2), 300)
# to the seed belong other samples, not another distribution; the size is in the run's heading
NOT_DESCRIBED = {"seed", "input_size"}
CHANGED: dict[str, Any] = {
    "repeats": 3,
    "scale": (0.2, 1.0),
    "ratio": (0.5, 2.0),
    "hflip": 0.25,
    "ra_layers": 1,
    "ra_magnitude": 7.0,
    "ra_std": 0.2,
    "ra_max": 9.2,
    "ra_prob": 0.7,
    "three_augment": True,
    "color_jitter": 0.4,
    "simple_crop": True,
    "reprob": 0.6,
    "remode": "rand",
    "erase_area": (0.1, 0.2),
    "erase_ratio": (0.5, 2.0),
    "mixup": 0.3,
    "cutmix": 0.4,
    "cutmix_minmax": (0.3, 0.5),
    "mixup_prob": 0.5,
    "mixup_switch_prob": 0.1,
    "mixup_group": 8,
}


def test_the_default_spec_is_described_in_one_line() -> None:
    assert PlanSpec().describe() == (
        "repeat(2)|resized_crop(0.08-1)|hflip(0.5)|randaug(2,m9,std0.5)|normalise"
        "|erase(0.25,pixel)|mixup(0.8)/cutmix(1)"
    )


def test_steps_that_are_off_are_not_described() -> None:
    off: dict[str, Any] = {"repeats": 1, "hflip": 0, "ra_layers": 0, "reprob": 0, "mixup_prob": 0}
    assert PlanSpec(**off).describe() == "resized_crop(0.08-1)|normalise"


def test_every_argument_that_was_changed_shows() -> None:
    spec = PlanSpec(ra_layers=0, three_augment=True, color_jitter=0.3, simple_crop=True)
    assert spec.describe() == (
        "repeat(2)|simple_crop|hflip(0.5)|3-augment|color_jitter(0.3)|normalise"
        "|erase(0.25,pixel)|mixup(0.8)/cutmix(1)"
    )
    spec = PlanSpec(
        ratio=(0.5, 2), ra_std=float("inf"), ra_max=8, ra_prob=1, cutmix_minmax=(0.2, 0.8)
    )
    assert spec.describe() == (
        "repeat(2)|resized_crop(0.08-1,ratio0.5-2)|hflip(0.5)|randaug(2,m9,stdinf,max8,p1)"
        "|normalise|erase(0.25,pixel)|mixup(0.8)/cutmix(1,side0.2-0.8)"
    )


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(PlanSpec)])
def test_a_field_that_changes_samples_changes_the_line(name: str) -> None:
    if name in NOT_DESCRIBED:
        return
    changes: dict[str, Any] = {name: CHANGED[name]}
    if name == "three_augment":
        changes["ra_layers"] = 0
    spec = PlanSpec(**changes)
    assert spec.describe() != PlanSpec().describe()
    before, after = (Plan(one, SIZES).draw(0, np.arange(40)) for one in (PlanSpec(), spec))
    # how a box is filled is the one field that the draws do not hold
    differ = [
        not np.array_equal(getattr(before, field.name), getattr(after, field.name))
        for field in dataclasses.fields(before)
    ]
    assert any(differ) or name == "remode"


def test_every_default_stands_once() -> None:
    """A plan of the default `Config` has the default spec, though no default is written twice."""
    assert build_plan(Config(), SIZES).spec == PlanSpec()
