"""What the tests of runs that change their form share: the run, and that another one is the same."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fastdeit.storage.jsonl import read_json_lines

EPOCHS = 4  # of three steps
FLAGS = ("--reprob", "0.5", "--eval-epochs", "4", "--micro-batch", "16", "--log-steps", "1")


def steps_of(folder: Path) -> list[dict[str, Any]]:
    """The lines of the log that are of steps."""
    return [line for line in read_json_lines(folder / "metrics.jsonl") if "lr" in line]


def assert_same_run(folder: Path, whole: Path) -> None:
    """The same samples in the same steps; losses and final weights within 1e-5."""
    mine, theirs = steps_of(folder), steps_of(whole)
    assert [(line["step"], line["digest"]) for line in mine] == [
        (line["step"], line["digest"]) for line in theirs
    ]
    assert len({line["digest"] for line in mine}) == 3 * EPOCHS
    for name in ("loss", "base", "distill", "grad_norm"):
        assert [line[name] for line in mine] == pytest.approx(
            [line[name] for line in theirs], rel=1e-5
        ), name
    for name in ("student.safetensors", "student_ema.safetensors"):
        left, right = load_file(folder / name), load_file(whole / name)
        for key, value in right.items():
            torch.testing.assert_close(left[key], value, rtol=0, atol=1e-5, msg=f"{key} of {name}")
