"""Assertions that two runs are the same: weights, log and files."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fastdeit.storage.jsonl import read_json_lines
from fastdeit.storage.run_folder import RunFolder
from tests.support.launching import TIMED

EPOCHS = 4  # of three steps
FLAGS = ("--reprob", "0.5", "--eval-epochs", "4", "--micro-batch", "16", "--log-steps", "1")


def steps_of(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of the log that belong to training steps."""
    return [line for line in read_json_lines(RunFolder(folder).metrics) if "lr" in line]


def values_by_step(folder: Path) -> dict[str, list[Any]]:
    """Return what the log has of each single step, by name: lists over all steps."""
    columns: dict[str, list[Any]] = {}
    for line in read_json_lines(RunFolder(folder).metrics):
        for name, values in line.get("by_step", {}).items():
            columns.setdefault(name, []).extend(values)
    return columns


def assert_same_run(folder: Path, whole: Path, other_files: frozenset[str] = frozenset()) -> None:
    """Assert that two runs have equal weights, equal logs but for time and speed, and equal file
    names.

    other_files: names that `folder` may have besides.
    """
    assert_same_weights(folder, whole)
    assert _log_of(folder) == _log_of(whole)
    names = {path.name for path in folder.iterdir()}
    assert names - other_files == {path.name for path in whole.iterdir()}


def _log_of(folder: Path) -> list[dict[str, Any]]:
    lines = read_json_lines(RunFolder(folder).metrics)
    for line in lines:
        for name in TIMED:
            line.pop(name, None)
    return lines


def assert_same_weights(folder: Path, whole: Path) -> None:
    assert not _differing_weights(folder, whole)


def assert_other_weights(folder: Path, whole: Path) -> None:
    assert _differing_weights(folder, whole)


def _differing_weights(folder: Path, whole: Path) -> list[str]:
    """Return the names of tensors that are not equal bit for bit."""
    names = []
    for left, right in _weight_pairs(folder, whole):
        assert left.keys() == right.keys()
        names += [name for name, value in left.items() if not torch.equal(value, right[name])]
    return names


def _weight_pairs(
    folder: Path, whole: Path
) -> list[tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]]:
    mine, theirs = RunFolder(folder), RunFolder(whole)
    pairs = [(load_file(mine.model), load_file(theirs.model))]
    assert mine.model_ema.exists() == theirs.model_ema.exists()
    if theirs.model_ema.exists():
        pairs.append((load_file(mine.model_ema), load_file(theirs.model_ema)))
    return pairs


def assert_same_samples(folder: Path, whole: Path, tolerance: float = 1e-5) -> None:
    """Assert that two runs have equal samples in equal steps, also with other world sizes.

    Losses and final weights must agree within `tolerance`.
    """
    mine, theirs = steps_of(folder), steps_of(whole)
    digests = [(line["step"], line["digest"]) for line in mine]
    assert digests == [(line["step"], line["digest"]) for line in theirs]
    assert len({line["digest"] for line in mine}) == 3 * EPOCHS
    for name in ("loss", "base", "distill", "grad_norm"):
        expected = pytest.approx([line[name] for line in theirs], rel=tolerance)
        assert [line[name] for line in mine] == expected, name
    for left, right in _weight_pairs(folder, whole):
        for name, value in right.items():
            torch.testing.assert_close(left[name], value, rtol=0, atol=tolerance, msg=name)
