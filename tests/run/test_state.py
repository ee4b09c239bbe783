"""Progress of a run: the marks after a rollback, and the rate."""

import time

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
