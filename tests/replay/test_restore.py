"""The lines of a replay before it repeats steps, and while it does."""

import io
from collections.abc import Callable
from typing import Any

import pytest

from fastdeit.display import progress
from fastdeit.display.terminal import Terminal
from fastdeit.replay.restore import describe_start, repeat_steps
from tests.replay.test_history import make_history

LOG = ({"step": 10, "images_per_s": 40.0}, {"step": 20, "images_per_s": 2.0}, {"step": 20})


@pytest.mark.parametrize(
    ("count", "metrics", "text"),
    [
        (0, LOG, "no step to repeat first"),
        (1, LOG[:1], "1 step to repeat first, 2 s at the speed of the run"),
        (2000, LOG[:1], "2,000 steps to repeat first, 1 h 7 min at the speed of the run"),
        (5, (), "5 steps to repeat first"),
    ],
)
def test_start_names_the_state_and_the_steps_to_repeat(count: int, metrics: Any, text: str) -> None:
    history = make_history(25, metrics=metrics)
    line = describe_start(history, "checkpoints/step-20", count, batch_size=80)
    assert line == f"step 25 of run from checkpoints/step-20: {text}"


class FakeTrainer:
    """A trainer whose steps take two seconds."""

    def __init__(self, step: int, wait: Callable[[float], None]) -> None:
        self.step = step
        self.done: list[str] = []
        self._wait = wait

    def train_step(self, batches: str) -> None:
        self._wait(2.0)
        self.done.append(batches)
        self.step += 1

    def skip_step(self) -> None:
        self.done.append("skip")
        self.step += 1


def test_repeated_steps_show_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])

    def wait(seconds: float) -> None:
        now[0] += seconds

    terminal = Terminal()
    text = io.StringIO()
    terminal.file = text
    trainer: Any = FakeTrainer(5, wait)
    samples: Any = type("Samples", (), {"batches": staticmethod(str)})
    trained = [step for step in range(5, 25) if not 7 <= step < 9] + [25]
    history = make_history(28, skipped=((7, 9), (26, 28)))
    repeat_steps(samples, history, trainer, trained, terminal)
    assert trainer.done == ["5", "6", "skip", "skip", *map(str, range(9, 26)), "skip", "skip"]
    assert text.getvalue().splitlines() == [
        "step 15 of 28, about 22 s left",
        "step 23 of 28, about 6 s left",
    ]
