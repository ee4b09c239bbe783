"""When a recorded teacher pays, and the room of checkpoints."""

import pytest

from fastdeit.estimate.lines import Span
from fastdeit.estimate.outputs import list_checkpoints, list_recording
from fastdeit.estimate.samples import Samples


@pytest.mark.parametrize(
    ("samples", "epochs", "run"),
    [
        (Samples(100, 10, 3, 1), 1, 1),  # 100 records, 300 samples
        (Samples(100, 10, 3, 1), 3, 2),  # as many: the first run saves nothing yet
        (Samples(105, 10, 3, 1), 3, 2),  # 312 records, 300 samples
        (Samples(198, 100, 3, 1), 3, 2),  # 594 records, 300 samples
        (Samples(200, 100, 3, 1), 6, 3),  # 1200 records, 600 samples
    ],
)
def test_recording_pays_from_the_run_that_saves_more_than_it_took(
    samples: Samples, epochs: int, run: int
) -> None:
    lines = {
        line.name: line for line in list_recording(Span(36.0, 18.0, 72.0), samples, epochs, "h")
    }
    assert lines["recording pays from run"].value == run
    recorded = epochs * (samples.images // 2 * 2)
    used = samples.epochs * samples.epoch_samples
    assert recorded < run * used and recorded >= (run - 1) * used
    assert lines["recording"].value == pytest.approx(recorded * 36e-3 / 3600)
    assert lines["saved by each run that reads it"].value == pytest.approx(used * 36e-3 / 3600)


def test_checkpoints_take_the_room_of_the_newest_of_the_best_and_of_one_that_is_written() -> None:
    lines = {line.name: line.value for line in list_checkpoints(3 * 10**9, 2, 1.5)}
    assert lines == {"one": 3.0, "kept": 9.0, "largest room": 12.0, "writing one": 2.0}
