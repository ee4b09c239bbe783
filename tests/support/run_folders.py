"""What runs leave in their folders: numbers, checkpoints, failures."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from fastdeit.checkpoint.store import list_checkpoints, step_of, verify_checkpoint
from fastdeit.storage.jsonl import read_json_lines
from tests.support.launching import assert_lines_near


def assert_same_numbers(folder: Path, whole: Path) -> None:
    """Assert that two finished runs have the same log, with equal digests, and weights, within
    1e-5."""
    mine, theirs = (read_json_lines(place / "metrics.jsonl") for place in (folder, whole))
    assert_lines_near(mine, theirs, 1e-5)
    for name in ("model.safetensors", "model_ema.safetensors"):
        found, wanted = load_file(folder / name), load_file(whole / name)
        for key, value in wanted.items():
            torch.testing.assert_close(
                found[key], value, rtol=1e-5, atol=1e-5, msg=f"{key} of {name} differs"
            )


def newest_step(folder: Path) -> int:
    """Return the step of the newest checkpoint, after verifying all of them."""
    found = list_checkpoints(folder / "checkpoints")
    for path in found:
        verify_checkpoint(path)
    return step_of(found[0])


def failures_of(folder: Path) -> dict[int, dict[str, Any]]:
    """Return the failures of the last attempt by rank."""
    found = (json.loads(file.read_text()) for file in folder.glob("failure-rank*.json"))
    return {failure["rank"]: failure for failure in found}
