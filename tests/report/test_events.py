"""The events of a run, from each of its files, also of older and damaged ones."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from fastdeit.report.events import list_events
from fastdeit.storage.jsonl import replace_lines
from fastdeit.storage.run_folder import RunFolder
from tests.report.test_record import ATTEMPT

FAILURE = {"time": 9.0, "rank": 1, "host": "h", "section": "step", "step": 7, "error": "lost"}
IMAGE = {"split": "train", "step": 4, "row": 1, "name": "x/\x1b.png", "fault": "truncated"}


def kinds(folder: RunFolder) -> list[tuple[int, str]]:
    return [(event.step, event.kind) for event in list_events(folder, [])]


@pytest.mark.parametrize(
    ("file", "record", "step", "text"),
    [
        ("bad_steps", {"step": 5}, 5, "the gradient is not finite"),
        ("bad_steps", {"step": 5, "not_finite": [{"rank": 1}]}, 5, "not finite on rank 1"),
        ("spikes", {"step": 6, "grad_norm": 50.0, "median": 2.0}, 6, "norm 50, median before 2"),
        ("rollbacks", {"passed_over": [2, 6]}, 6, "rolled back to step 2, .* up to 5"),
        ("failures", FAILURE, 7, "rank 1 failed in step: lost"),
        ("quarantine", IMAGE, 4, r"1 image excluded: x/\\x1b.png"),
    ],
)
def test_each_record_is_an_event(
    tmp_path: Path, file: str, record: dict[str, Any], step: int, text: str
) -> None:
    folder = RunFolder(tmp_path)
    replace_lines(getattr(folder, file), [{"of": "another version"}, record])
    (event,) = [found for found in list_events(folder, []) if found.step]
    assert event.step == step
    assert re.search(text, event.text)


def test_starts_and_a_failure_of_the_last_attempt_lie_on_one_axis(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.failure(1).write_text(json.dumps(FAILURE))
    found = list_events(folder, [ATTEMPT, ATTEMPT])
    assert [event.text for event in found[:2]] == [
        "started on 2 processes, fp32",
        "resumed on 2 processes, fp32",
    ]
    assert (found[2].step, found[2].kind, found[2].time) == (7, "failure", 9.0)


def test_images_found_bad_at_one_step_are_one_event(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    images = [IMAGE | {"row": row, "name": f"{row}.png"} for row in (1, 2, 2, 3, 4)]
    replace_lines(folder.quarantine, images)
    (event,) = list_events(folder, [])
    assert event.text == "4 images excluded: 1.png, 2.png, 3.png and 1 more"


def test_records_without_a_step_are_skipped(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for file in (folder.bad_steps, folder.spikes, folder.rollbacks):
        replace_lines(file, [{"step": -1, "passed_over": [1]}, {"step": "3", "passed_over": 2}])
    assert kinds(folder) == []
