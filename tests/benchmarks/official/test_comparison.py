"""What the rows of both trainers say."""

import pytest

from benchmarks.official.comparison import (
    bound_difference,
    describe_difference,
    measure_times,
    select_runs,
)


def row(impl: str, seed: int, updates: int, top1: float, cpu_s: float) -> dict[str, str]:
    values = {"seed": seed, "updates": updates, "top1": top1, "cpu_s": cpu_s}
    return {
        "impl": impl,
        "train_images": "64",
        **{name: str(value) for name, value in values.items()},
    }


ROWS = [
    *(row(impl, 0, 100, 20.0, 15.0) for impl in ("deit", "fastdeit")),
    *(row("deit", seed, 300, 40.0 + seed, 35.0) for seed in range(3)),
    *(row("fastdeit", seed, 300, 40.5 + seed, 19.0) for seed in range(3)),
]


def test_the_interval_is_welchs() -> None:
    interval = bound_difference([40.0, 42.0, 44.0], [40.0, 41.0, 42.0])
    # by hand: standard error sqrt(4/3 + 1/3), 2.94 degrees of freedom, quantile 3.219
    assert interval == pytest.approx((1 - 3.219 * 1.291, 1 + 3.219 * 1.291), abs=5e-3)
    assert interval.has_zero


def test_a_difference_beyond_the_noise_is_called_one() -> None:
    far = [{**each, "top1": str(float(each["top1"]) + 9)} for each in ROWS[5:]]
    assert describe_difference(ROWS).endswith(": within noise")
    assert describe_difference([*ROWS[:5], *far]).endswith(": not within noise")
    assert describe_difference([*ROWS[:5], *far]).startswith("+9.50 (")
    assert describe_difference(ROWS[:6]) == "-0.50, one seed: no interval"


def test_the_newest_long_run_of_a_seed_counts() -> None:
    again = row("deit", 1, 300, 50.0, 36.0)
    found = select_runs([*ROWS, again], "deit")
    assert [each["top1"] for each in found] == ["40.0", "50.0", "42.0"]


def test_an_update_does_not_pay_for_the_start() -> None:
    assert measure_times(ROWS, "deit") == pytest.approx((35.0, 100.0))
    assert measure_times(ROWS, "fastdeit") == pytest.approx((19.0, 20.0))
    other_size = row("deit", 0, 50, 20.0, 1.0) | {"train_images": "32"}
    assert measure_times([*ROWS, other_size], "deit") == pytest.approx((35.0, 100.0))
