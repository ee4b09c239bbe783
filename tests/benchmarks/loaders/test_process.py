"""A loader's process: what it measures, and that it names a failure.

.venv/bin/python -m pytest tests/benchmarks/loaders/test_process.py, about 8 s
"""

import time

import pytest

from benchmarks.loaders.case import Case
from benchmarks.loaders.process import LoaderProcess, measure
from tests.support.burning_loader import start_ahead, start_burning


def test_cpu_time_is_divided_by_the_images_that_were_taken() -> None:
    # many images, as looking for threads that run takes CPU time too, of all that this process has
    assert measure(start_burning(Case("", samples=20)), 21) == pytest.approx(10, rel=0.3)


def test_batches_made_ahead_are_not_counted_as_free() -> None:
    started = start_ahead(Case("", samples=40))
    time.sleep(1.5)  # two batches are ahead
    assert measure(started, 40) == pytest.approx(10, rel=0.3)


def test_process_answers_several_cases_and_ignores_what_libraries_print() -> None:
    process = LoaderProcess("tests.support.burning_loader:start_burning")
    for samples in (1, 4):
        assert process.measure(Case("", samples=samples), 4) == pytest.approx(10, rel=0.3)
    process.close()


def test_failed_loader_is_named() -> None:
    process = LoaderProcess("tests.support.burning_loader:start_failing")
    with pytest.raises(RuntimeError, match="burning_loader:start_failing failed"):
        process.measure(Case("/nowhere"), 1)
    process.close()
