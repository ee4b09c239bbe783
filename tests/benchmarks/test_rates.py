"""The packaged rates: they are those of the result files."""

from benchmarks.rates import collect_rates, format_rates
from fastdeit.estimate.rates import TABLE, find_loader


def test_the_package_has_the_rates_of_the_result_files() -> None:
    advice = "run: python -m benchmarks.rates"
    assert TABLE.read_text(encoding="utf-8") == format_rates(collect_rates()), advice


def test_a_size_that_was_not_measured_is_no_measurement() -> None:
    small, large = (find_loader("exact", "folder", size, 2) for size in (224, 384))
    between = find_loader("exact", "folder", 300, 2)
    assert small.measured and large.measured and not between.measured
    assert small.value < between.value < large.value and "by area" in between.source
    assert not find_loader("exact", "folder", 224, 4).measured
