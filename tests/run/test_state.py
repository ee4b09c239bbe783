"""Progress of a run: the marks after a rollback, and the rate."""

import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from fastdeit.distributed.world import init_distributed
from fastdeit.run.state import Progress


def test_restart_forgets_everything_after_the_step() -> None:
    init_distributed()
    progress = Progress(last_evaluated_step=12, last_compared_step=14, last_saved_step=12)
    progress.meter.add(14, 0.1, torch.ones(4))
    progress.restart(9, last_evaluated_step=6)
    assert progress.meter.read() == []
    assert progress.last_evaluated_step == 6
    assert progress.last_compared_step == -1
    assert progress.last_saved_step == 9
    assert progress.clock_step == 9


def test_rate_counts_steps_since_the_last_call(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    progress = Progress()
    progress.restart_clock(10)
    now[0] += 4
    assert progress.rate(18) == 2
    now[0] += 2
    assert progress.rate(19) == 0.5


def test_wait_for_batches_is_a_share_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def batches() -> Iterator[Any]:
        for number in range(3):
            now[0] += 1
            yield number

    progress = Progress()
    progress.restart_clock(0)
    for _ in progress.time_waits(batches()):
        now[0] += 3
    assert progress.wait_share() == 0.25
    progress.rate(3)
    now[0] += 5
    assert progress.wait_share() == 0
