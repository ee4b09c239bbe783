"""Resident memory stays flat over training and evaluation in turns; the full length is
benchmarks.bench_loader_memory.py's."""

from pathlib import Path

import pytest

from benchmarks.bench_loader_memory import ALLOWED_PCT, run, swing_pct
from benchmarks.loaders.images import write_images


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["exact", "native"])
def test_resident_memory_is_flat_over_2000_iterations(tmp_path: Path, backend: str) -> None:
    write_images(tmp_path, 128, links=1)
    assert swing_pct(run(tmp_path, backend, 2000)) < ALLOWED_PCT
