"""Where a DALI graph runs in a test: on a CPU, on a CPU by the formulas of a GPU, and on a GPU; and
measured distances from the expected images.

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
from fastdeit.data.graphs.options import PipelineOptions


def act_as_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a graph on the CPU take every branch of a GPU."""
    monkeypatch.setattr(native_ops, "_may_be_named", lambda computed: False)
    monkeypatch.setattr(PipelineOptions, "dtype", property(lambda options: types.FLOAT16))


def device_of(place: str) -> str:
    """Return DALI's name of the device."""
    return "gpu" if place == "gpu" else "cpu"


def to_numpy(images: Any) -> np.ndarray:
    """Copy a pipeline's images, all of one size, from its device."""
    return np.array(images.as_cpu().as_tensor())


@dataclass(frozen=True)
class Distances:
    """Distances of images, each reported before it is checked.

    path: a CSV table to which each distance is appended; test: the name of the test.
    """

    path: Path | None
    place: str
    test: str

    def check(
        self,
        ours: np.ndarray,
        expected: np.ndarray,
        *,
        most: float | None = None,
        mean: float | None = None,
    ) -> None:
        """Report the distance; raise AssertionError if its maximum or mean is above its bound.

        most, mean: the bounds, or None to report only.
        """
        distance = np.abs(np.asarray(ours, np.float64) - expected)
        largest = float(distance.max())
        found = float(distance.mean())
        above = float((distance > 1.5).mean())
        facts = {"test": self.test, "largest": largest, "mean": found, "share_above_1": above}
        self._report({**self._origin(), **facts, "largest_allowed": most, "mean_allowed": mean})
        if mean is not None:
            assert found <= mean, f"mean distance must be at most {mean} (got {found:.4f})"
        if most is not None:
            assert largest <= most, f"largest distance must be at most {most} (got {largest:.4f})"

    def _origin(self) -> dict[str, str]:
        device = torch.cuda.get_device_name() if self.place == "gpu" else "CPU"
        return {"device": device, "dali": nvidia.dali.__version__, "place": self.place}

    def _report(self, row: dict[str, Any]) -> None:
        rounded = dict(row)
        for name, value in row.items():
            if isinstance(value, float):
                rounded[name] = f"{value:.6g}"
        print(rounded)
        if self.path is not None:
            with self.path.open("a", newline="") as file:
                table = csv.DictWriter(file, list(rounded))
                if not file.tell():
                    table.writeheader()
                table.writerow(rounded)
