"""`StepHistory`: what a run's records say of a step, before and after rollbacks."""

import dataclasses
from pathlib import Path

import pytest

from fastdeit.data.quarantine import QuarantinedImage
from fastdeit.replay.history import Metrics, StepHistory, Window
from fastdeit.storage.attempts import Attempt
from fastdeit.storage.run_folder import RunFolder


def make_attempt(step: int, excluded: tuple[int, ...] = ()) -> Attempt:
    return Attempt(step, 1, 8, 1, False, "fp32", "exact", "cpu", excluded)


def make_history(
    step: int,
    attempts: tuple[Attempt, ...] = (make_attempt(0),),
    metrics: tuple[Metrics, ...] = (),
    quarantine: tuple[QuarantinedImage, ...] = (),
    skipped: tuple[tuple[int, int], ...] = (),
) -> StepHistory:
    return StepHistory(
        folder=RunFolder(Path("run")),
        step=step,
        attempt=next(each for each in reversed(attempts) if each.step <= step),
        bad_step=None,
        spike=None,
        attempts=list(attempts),
        metrics=list(metrics),
        quarantine=list(quarantine),
        skipped_ranges=list(skipped),
    )


@pytest.mark.parametrize(
    ("step", "rolled_back", "latest"), [(2, False, 2), (3, True, 3), (5, True, 3), (6, False, 6)]
)
def test_step_in_a_skipped_range_starts_from_before_the_range(
    step: int, rolled_back: bool, latest: int
) -> None:
    """The run rolled back to step 3 and skipped steps 3 to 5."""
    history = make_history(step, skipped=((3, 6),))
    assert history.was_rolled_back == rolled_back
    assert history.latest_state == latest


def test_steps_are_skipped_only_on_the_way_to_later_steps() -> None:
    before, after = make_history(5, skipped=((3, 6),)), make_history(6, skipped=((3, 6),))
    assert not before.skipped_before(4) and before.skipped_now(4)
    assert after.skipped_before(4) and after.skipped_now(4)


def test_images_are_excluded_from_the_step_that_found_them_bad() -> None:
    bad = QuarantinedImage(split="train", step=4, row=7, fault="")
    attempts = make_attempt(0, (1,)), make_attempt(6, (1, 7, 9))
    history = make_history(8, attempts, quarantine=(bad,))
    assert history.excluded_images(3) == {1}
    assert history.excluded_images(4) == {1, 7}
    assert history.excluded_images(6) == {1, 7, 9}


LOG = (
    {"step": 2, "lr": 0.1, "digest": f"{5:016x}"},
    {"step": 4, "model/both/top1": 50.0},
    {"step": 5, "lr": 0.1, "digest": f"{11:016x}"},
)


def test_log_line_of_a_step_is_the_first_after_it() -> None:
    assert make_history(1, metrics=LOG).metrics_line() == (LOG[0], 0)
    assert make_history(2, metrics=LOG).metrics_line() == (LOG[2], 2)
    assert make_history(4, metrics=LOG).metrics_line() == (LOG[2], 2)
    assert make_history(5, metrics=LOG).metrics_line() == (None, 5)


def test_means_begin_with_the_attempt() -> None:
    attempts = make_attempt(0), make_attempt(3)
    assert make_history(4, attempts, LOG).metrics_line() == (LOG[2], 3)


def test_window_is_the_smallest_range_with_a_hash() -> None:
    assert make_history(1, metrics=LOG).window() == Window(0, 2, 5)
    assert make_history(4, metrics=LOG).window() == Window(2, 5, 6)
    assert make_history(5, metrics=LOG).window() is None


def test_run_that_began_later_has_no_hash_before_its_first_line() -> None:
    assert make_history(1, (make_attempt(1),), LOG).window() is None


def test_rolled_back_step_has_neither_line_nor_window() -> None:
    history = make_history(4, metrics=LOG, skipped=((3, 5),))
    assert history.metrics_line()[0] is None and history.window() is None


def test_outputs_of_the_teacher_are_those_of_the_steps_that_are_repeated() -> None:
    attempts = tuple(
        dataclasses.replace(make_attempt(step), teacher_output=output)
        for step, output in ((0, "logits"), (2, "top 3 logits"), (4, ""))
    )
    for first, step, outputs in (
        (0, 1, {"logits"}),
        (0, 2, {"logits", "top 3 logits"}),
        (2, 3, {"top 3 logits"}),
        (4, 5, set()),
    ):
        assert make_history(step, attempts).teacher_outputs(first) == outputs
