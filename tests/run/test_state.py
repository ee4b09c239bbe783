"""Progress of a run: the marks after a rollback, the rate, and the time left."""

import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from fastdeit.config.schema import Config
from fastdeit.distributed.world import init_distributed
from fastdeit.run.state import Pace, Progress, count_left


def test_restart_forgets_everything_after_the_step() -> None:
    init_distributed()
    progress = Progress(last_evaluated_step=12, last_compared_step=14, last_saved_step=12)
    progress.meter.add(14, 0.1, torch.ones(4))
    step: Any = None
    progress.launched.append(step)
    progress.waited_s = 3.0
    progress.restart(9, last_evaluated_step=6)
    assert progress.meter.read() == []
    assert progress.last_evaluated_step == 6
    assert progress.last_compared_step == -1
    assert progress.last_saved_step == 9
    assert (progress.clock_step, progress.waited_s) == (9, 0.0)
    assert not progress.launched


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


def test_time_left_is_that_of_steps_evaluations_and_checkpoints() -> None:
    pace = Pace()
    assert pace.estimate({"step": 5}) is None
    pace.add("step", 10, 20.0)
    pace.add("step", 10, 10.0)
    counts = {"step": 100, "evaluation": 3, "checkpoint": 2}
    assert pace.estimate(counts) == 150
    pace.add("evaluation", 1, 7.0)
    pace.add("checkpoint", 1, 0.5)
    assert pace.estimate(counts) == 150 + 3 * 7 + 1


def test_a_pause_and_the_first_steps_do_not_count() -> None:
    pace = Pace()
    pace.add("step", 10, 300.0)  # compiles
    pace.add("step", 10, 10.0)
    assert pace.estimate({"step": 60}) == 60
    pace.add("step", 20, 7200.0)  # stopped
    pace.add("step", 1, 1.0)
    pace.add("step", 0, 99.0)
    assert pace.estimate({"step": 60}) == 60


def test_a_pace_that_changes_is_followed() -> None:
    pace = Pace()
    for seconds in (1.0, 3.0):
        for _ in range(Pace.LATEST):
            pace.add("step", 1, seconds)
    assert pace.estimate({"step": 10}) == 30


def test_what_fails_has_no_pace() -> None:
    pace = Pace()
    pace.add("step", 1, 1.0)
    with pytest.raises(ValueError, match="stopped"), pace.timed("evaluation"):
        raise ValueError("stopped")
    assert pace.estimate({"evaluation": 1}) == 0
    with pace.timed("evaluation"):
        pass
    assert pace.estimate({"evaluation": 1}) != 0


def left(step: int, evaluated: int, saved: int, **run: int) -> tuple[int, ...]:
    """Count what is left of 7 epochs of 20 steps, with an evaluation every 3 epochs."""
    config = Config().replace(
        optim={"epochs": 7}, run={"eval_epochs": 3}, checkpoint={"save_steps": run.pop("save", 0)}
    )
    progress = Progress(last_evaluated_step=evaluated, last_saved_step=saved)
    return tuple(count_left(config, 20, step, progress).values())


def test_what_is_left_is_counted() -> None:
    # the epochs 3, 6 and 7, and the results
    assert left(0, 0, -1) == (140, 4, 7)
    assert left(59, 0, 40) == (81, 4, 5)
    # the line of a step comes before its evaluation and its checkpoint
    assert left(60, 0, 40) == (80, 4, 5)
    assert left(60, 60, 60) == (80, 3, 4)
    assert left(140, 140, 140) == (0, 1, 0)
    # steps 30, 60, 90 and 120, of which two end an epoch
    assert left(0, 0, 0, save=30) == (140, 4, 9)
    # evaluations that another --eval-epochs has not made are past
    assert left(61, 0, 60) == (79, 3, 4)
