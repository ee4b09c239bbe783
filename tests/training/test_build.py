"""Notes on settings that do not fit the length of a run."""

import pytest

from fastdeit.config.schema import Config
from fastdeit.training.build import note_schedule


def notes(steps: int, **optim: object) -> str:
    return "; ".join(note_schedule(Config().replace(optim=optim), steps))


def test_an_ema_of_initial_weights_is_noted() -> None:
    found = notes(2700)
    assert "90% initial weights (its half-life is 17,328 steps, the run has 2,700)" in found
    assert "--model-ema-warmup" in found


@pytest.mark.parametrize(
    "optim",
    [{"model_ema_decay": 0.99}, {"model_ema_warmup": True}, {"model_ema": False}],
    ids=["short memory", "warm-up", "no EMA"],
)
def test_no_note_where_the_ema_follows(optim: dict[str, object]) -> None:
    assert notes(2700, **optim) == ""


def test_a_fifth_of_the_run_is_the_limit() -> None:
    assert notes(300 * 1251) == ""
    assert notes(5 * 17_329) == "" and notes(5 * 17_328) != ""


def test_a_warm_up_as_long_as_the_run_is_noted() -> None:
    long = {"model_ema": False, "warmup_epochs": 5}
    assert "never reaches its peak (5 epochs of warm-up, 5 in all)" in notes(10, epochs=5, **long)
    assert notes(10, epochs=6, **long) == ""


def test_a_rate_under_its_end_is_noted() -> None:
    short = {"model_ema": False}
    assert "--lr 0.0005 x 4 / 512 = 3.90625e-06, under --min-lr" in notes(10, batch_size=4, **short)
    assert notes(10, batch_size=16, **short) == ""
