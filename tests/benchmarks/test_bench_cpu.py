"""`benchmarks.bench_cpu`: the columns of a row from the times of the rounds."""

import pytest

from benchmarks import bench_cpu


def test_a_row_compares_within_rounds() -> None:
    times = {
        "ours": [100.0, 200.0, 100.0],
        "timm": [110.0, 220.0, 90.0],
        "compute": [90.0, 180.0, 90.0],
        "optimizer": [5.0, 10.0, 5.0],
    }
    row = bench_cpu.summarise(times)
    assert row["ratio"] == 1.1 and row["ours_ms"] == 100
    assert row["overhead_pct"] == pytest.approx(5)


def test_time_in_a_method_is_counted() -> None:
    class Worker:
        def work(self) -> int:
            return sum(range(20_000))

    worker, clock = Worker(), bench_cpu.Clock()
    clock.count(worker, "work")
    assert worker.work() == sum(range(20_000)) and clock.ms > 0
