"""The training loop: when the loader is started again, when a skipped step is known."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fastdeit.config.schema import Config
from fastdeit.reliability.supervisor import StopAgreed
from fastdeit.run import loop
from fastdeit.run.loop import StepBatches, after_step, settle, train, train_step
from fastdeit.run.state import Progress
from fastdeit.tracking.trackers import Trackers


class FakeLoader:
    """Three steps per epoch, two micro-batches per step; a micro-batch is (step, number)."""

    steps_per_epoch = 3
    micro_steps = 2

    def __init__(self) -> None:
        self.starts: list[tuple[int, int]] = []
        self.last_epochs: set[int] = set()

    def epoch(
        self, epoch: int, first_step: int = 0, *, is_last: bool = False
    ) -> Iterator[tuple[int, int]]:
        self.starts.append((epoch, first_step))
        if is_last:
            self.last_epochs.add(epoch)
        for place in range(first_step, self.steps_per_epoch):
            for number in range(self.micro_steps):
                yield epoch * self.steps_per_epoch + place, number


@pytest.mark.parametrize(
    ("steps", "starts"),
    [
        ([0, 1, 2, 3, 4], [(0, 0), (1, 0)]),
        ([1, 2, 3], [(0, 1), (1, 0)]),
        # a rollback from step 5 to step 1
        ([3, 4, 1, 2], [(1, 0), (0, 1)]),
        # steps 1 to 3 are skipped
        ([0, 4, 5], [(0, 0), (1, 1)]),
    ],
    ids=["in order", "from the middle of an epoch", "rollback", "skipped steps"],
)
def test_loader_starts_where_the_order_of_steps_breaks(
    steps: list[int], starts: list[tuple[int, int]]
) -> None:
    loader: Any = FakeLoader()
    batches = StepBatches(loader, epochs=2)
    for step in steps:
        assert list(batches.of(step)) == [(step, 0), (step, 1)]
    assert loader.starts == starts
    assert loader.last_epochs == {1}


class FakeTrainer:
    """A trainer whose steps `bad` are skipped; `events` is the order of launches and of reads."""

    def __init__(self, bad: set[int]) -> None:
        self.bad = bad
        self.step = 0
        self.lr = 0.1
        self.events: list[str] = []
        self.last: Any = None

    def train_step(self, micro_batches: Iterator[Any]) -> torch.Tensor:
        self.events.append(f"launch {self.step}")
        self.last = FakeStep(self, self.step)
        self.step += 1
        return torch.zeros(4)


class FakeStep:
    def __init__(self, trainer: FakeTrainer, step: int) -> None:
        self.trainer = trainer
        self.step = step
        self.micro_steps = [f"samples of {step}"]

    @property
    def applied(self) -> bool:
        self.trainer.events.append(f"read {self.step}")
        return self.step not in self.trainer.bad


class FakeHealth:
    def __init__(self, trainer: FakeTrainer) -> None:
        self.trainer = trainer
        self.bad: list[int] = []

    def note_bad(self, step: int, micro_steps: list[str], name: Any) -> None:
        assert micro_steps == [f"samples of {step}"]
        self.trainer.events.append(f"bad {step}")
        self.bad.append(step)


def make_run(bad: set[int], max_bad_steps: int) -> Any:
    trainer = FakeTrainer(bad)
    data = SimpleNamespace(quarantine=SimpleNamespace(), train_index=SimpleNamespace(name=str))
    return SimpleNamespace(
        trainer=trainer,
        data=data,
        supervisor=SimpleNamespace(timed=lambda section, step, micro_batches: micro_batches),
        progress=Progress(),
        trackers=Trackers(),
        health=FakeHealth(trainer),
        config=Config().replace(health={"max_bad_steps": max_bad_steps}),
    )


def test_flag_of_a_step_is_read_after_the_next_step_is_launched() -> None:
    run = make_run({1}, max_bad_steps=5)
    assert all(train_step(run, iter(())) for _ in range(4))
    order = ["launch 0", "launch 1", "read 0", "launch 2", "read 1", "bad 1", "launch 3", "read 2"]
    assert run.trainer.events == order and run.health.bad == []
    settle(run)
    assert run.trainer.events[-1] == "read 3" and not run.progress.launched


@pytest.mark.parametrize("most", [0, 1, 2])
def test_no_step_is_launched_after_the_last_bad_one_before_a_rollback(most: int) -> None:
    first = 3
    run = make_run({first + number for number in range(9)}, most)
    while train_step(run, iter(())):
        assert run.trainer.step < 12
    assert run.health.bad == list(range(first, first + most + 1))
    assert run.trainer.events[-2:] == [f"read {first + most}", f"bad {first + most}"]
    assert f"launch {first + most + 1}" not in run.trainer.events


def test_good_step_between_bad_ones_ends_the_row() -> None:
    run = make_run({0, 1, 3, 4}, max_bad_steps=2)
    assert all(train_step(run, iter(())) for _ in range(6))
    settle(run)
    assert run.health.bad == []
    assert [event for event in run.trainer.events if "bad" in event] == [
        "bad 0",
        "bad 1",
        "bad 3",
        "bad 4",
    ]


def train_after_rollback(monkeypatch: pytest.MonkeyPatch, stop_after_steps: int) -> Any:
    """Resume at step 4, whose batch is bad: roll back to 2, skip up to 4; return the trainer."""
    run = make_run(set(), max_bad_steps=0)
    run.config = run.config.replace(run={"stop_after_steps": stop_after_steps})
    run.data.train_loader = FakeLoader()
    run.total_steps = 9
    run.trainer.step = 4
    run.health.rollbacks = []

    def advance(run: Any, *_: Any) -> bool:
        run.trainer.step += 1
        return run.trainer.step != 5 or bool(run.health.rollbacks)

    def return_to_2(run: Any) -> None:
        run.trainer.step = 2
        run.health.rollbacks = [2, 3, 4]

    for name in ("compare_replicas", "evaluate_if_due", "log_step", "after_step"):
        monkeypatch.setattr(loop, name, lambda run: None)
    for name in ("save_checkpoint", "wait_for_checkpoint"):
        monkeypatch.setattr(loop, name, lambda run: None)
    for name in ("train_step", "skip_step"):
        monkeypatch.setattr(loop, name, advance)
    monkeypatch.setattr(loop, "roll_back", return_to_2)
    try:
        train(run)
    except StopAgreed:
        assert stop_after_steps
    return run.trainer


def test_rollback_past_the_step_of_the_start_does_not_end_a_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert train_after_rollback(monkeypatch, stop_after_steps=0).step == 9
    assert train_after_rollback(monkeypatch, stop_after_steps=2).step == 6


@pytest.mark.parametrize(("step", "is_saved"), [(3, True), (4, False), (5, True), (6, True)])
def test_time_of_a_checkpoint_is_not_that_of_steps(
    step: int, is_saved: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(set(), max_bad_steps=0)
    run.config = run.config.replace(checkpoint={"save_steps": 5}, health={"checksum_steps": 0})
    run.steps_per_epoch = 3
    run.trainer.step = step
    run.supervisor.check = lambda: None
    run.progress.waited_s = 9.0
    run.progress.last_evaluated_step = 6
    events: list[str] = []
    run.report = SimpleNamespace(start=lambda: events.append("report"))
    for name in ("report_saves", "log_step", "evaluate_if_due", "save_checkpoint"):
        monkeypatch.setattr(loop, name, lambda run, name=name: events.append(name))
    after_step(run)
    assert ("save_checkpoint" in events) is is_saved
    # the clock of the rate begins anew
    assert (run.progress.clock_step == step) is (run.progress.waited_s == 0) is is_saved
    assert ("report" in events) is (step == 6)
    assert ("log_step" in events) is (step % 3 == 0)


def test_image_that_an_evaluation_finds_bad_is_recorded_with_its_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = make_run(set(), max_bad_steps=0)
    run.trainer.step = 6
    run.trainer.state = SimpleNamespace(module=dict, ema_module=lambda: None, dtype=None)
    run.world = SimpleNamespace(size=1)
    run.supervisor.beat = lambda section, step: None
    run.data.val_loader = SimpleNamespace(quarantine=SimpleNamespace(step=0))
    monkeypatch.setattr(loop, "student_heads", lambda module: None)
    monkeypatch.setattr(loop, "save_predictions", lambda run, recorder: None)
    steps: list[int] = []

    def evaluate(*_: Any) -> dict[str, float]:
        steps.append(run.data.val_loader.quarantine.step)
        return {}

    monkeypatch.setattr(loop, "evaluate", evaluate)
    loop.evaluate_run(run, with_teacher=False)
    assert steps == [6]
