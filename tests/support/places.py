"""Where a DALI graph runs in a test: on a CPU, on a CPU by the formulas of a GPU, and on a GPU; and
how far it is from what it should be.

A GPU gets formulas of its own where an operator cannot take by name what lies there, and images in
float16. What a CPU cannot stand in for are the operators whose code on a GPU is another:
warp_perspective (CV-CUDA, not OpenCV), equalize (DALI's own, not OpenCV), filter and resize (other
sums), and the decoders `mixed` and `hardware`.
"""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import nvidia.dali
import pytest
import torch
from nvidia.dali import types

from fastdeit.data.augment import native_ops
from fastdeit.data.pipeline import PipelineOptions


def act_as_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take every branch that a graph takes for a GPU, but on the CPU."""
    monkeypatch.setattr(native_ops, "_may_be_named", lambda computed: False)
    monkeypatch.setattr(PipelineOptions, "dtype", property(lambda options: types.FLOAT16))


def device_of(place: str) -> str:
    """Name DALI's device."""
    return "gpu" if place == "gpu" else "cpu"


def to_numpy(images: Any) -> np.ndarray:
    """Copy what a pipeline gave, of images of one size, on whichever device."""
    return np.array(images.as_cpu().as_tensor())


@dataclass(frozen=True)
class Distances:
    """Measure distances of images, report them, and only then hold them to their bounds.

    path: of a table in CSV that each distance is added to; test: what is said of where they come
    from.
    """

    path: Path | None
    place: str
    test: str

    def hold(
        self,
        ours: np.ndarray,
        expected: np.ndarray,
        *,
        most: float | None = None,
        mean: float | None = None,
    ) -> None:
        """Raise AssertionError if the largest or the mean distance is above its bound; None: it is
        only reported."""
        distance = np.abs(np.asarray(ours, np.float64) - expected)
        largest, average, beyond = (
            float(distance.max()),
            float(distance.mean()),
            float((distance > 1.5).mean()),
        )
        facts = {"test": self.test, "largest": largest, "mean": average, "share_above_1": beyond}
        self._report({**self._origin(), **facts, "largest_allowed": most, "mean_allowed": mean})
        assert mean is None or average <= mean, f"mean distance: {average:.4f}, allowed is {mean}"
        assert most is None or largest <= most, (
            f"largest distance: {largest:.4f}, allowed is {most}"
        )

    def _origin(self) -> dict[str, str]:
        device = torch.cuda.get_device_name() if self.place == "gpu" else "CPU"
        return {"device": device, "dali": nvidia.dali.__version__, "place": self.place}

    def _report(self, row: dict[str, Any]) -> None:
        rounded = {
            name: f"{value:.6g}" if isinstance(value, float) else value
            for name, value in row.items()
        }
        print(rounded)
        if self.path is not None:
            with self.path.open("a", newline="") as file:
                table = csv.DictWriter(file, list(rounded))
                if not file.tell():
                    table.writeheader()
                table.writerow(rounded)
