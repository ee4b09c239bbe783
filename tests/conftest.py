"""Settings of all tests: one thread, Triton's interpreter where there is no GPU, the order of
files, and the markers."""

import functools
import gc
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

# tensors are small, and spinning threads are slow on a busy machine
os.environ.setdefault("OMP_NUM_THREADS", "1")
# a shell starts what it runs in the background with SIGINT ignored, which children inherit
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest
import torch

if TYPE_CHECKING:
    from tests.support.places import Distances

if not torch.cuda.is_available():
    # read when a kernel is decorated, so before any kernel is imported
    os.environ.setdefault("TRITON_INTERPRET", "1")
    os.environ.setdefault("DS_ACCELERATOR", "cpu")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--distances",
        type=Path,
        help="a CSV file that gets a row for each measured distance of images from PIL's",
    )


# the files that take longest, longest first: none of them is left for the end, when it would run
# alone (`pytest --durations=0` shows what each test takes)
HEAVY = (
    "reliability/test_faults.py",
    "training/zero/test_partitions.py",
    "commands/runs/test_replay.py",
    "checkpoint/test_select.py",
    "teacher_cache/test_check.py",
    "commands/runs/test_train.py",
    "teacher_cache/test_record.py",
    "kernels/test_resources.py",
    "reliability/test_health.py",
    "run/test_launch.py",
    "kernels/test_resize.py",
    "kernels/test_augment.py",
    "kernels/test_attention.py",
    "reliability/test_supervisor.py",
    "export/test_program.py",
    "reliability/test_launcher.py",
    "test_site.py",
    "training/test_trainer.py",
    "data/augment/test_native.py",
    "test_processors.py",
)


def pytest_configure(config: pytest.Config) -> None:
    """Save time where the results are equal."""
    from tests.support.quick_flags import reuse_parsers

    reuse_parsers()
    if os.environ.get("TRITON_INTERPRET") == "1":
        from tests.kernels.interpreter import hasten

        hasten()


def _asks_for_slow(config: pytest.Config) -> bool:
    return "slow" in (config.option.markexpr or "")


@functools.cache
def _name_of(path: Path) -> str:
    return path.relative_to(Path(__file__).parent).as_posix()


def _rank(item: pytest.Item) -> int:
    """Return the place of a test's file among the heavy ones, or the last place."""
    name = _name_of(item.path)
    return HEAVY.index(name) if name in HEAVY else len(HEAVY)


# no collection while all test files are imported; later ones do not walk through what they hold
gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.set_threshold(10_000, 50)  # the objects of the interpreter of kernels live for a moment
    gc.enable()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=_rank)
    for item in items:
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
        if not _is_taken_by_default(item):
            item.add_marker(pytest.mark.slow)
        if "slow" in item.keywords and not _asks_for_slow(config):
            item.add_marker(pytest.mark.skip(reason="full-length form; run with -m slow"))


def _is_taken_by_default(item: pytest.Item) -> bool:
    from tests.support.short_forms import is_short

    name = f"{_name_of(item.path)}::{item.name}"
    return is_short(name) or (torch.cuda.is_available() and name.startswith("kernels/"))


@pytest.fixture(autouse=True)
def empty_report(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let runs in this process end with an empty report, which takes a third of their time; those
    of files called test_report.py write theirs."""
    module = sys.modules.get("fastdeit.run.report")
    if module and request.path.name != "test_report.py":
        monkeypatch.setattr(module, "write_report", lambda runs, path: path.touch())


@pytest.fixture(params=("cpu", "as_gpu", pytest.param("gpu", marks=pytest.mark.gpu)))
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return where a DALI graph runs; tests/support/places.py defines the three places."""
    if request.param == "as_gpu":
        from tests.support.places import act_as_gpu

        act_as_gpu(monkeypatch)
    return str(request.param)


@pytest.fixture
def distances(request: pytest.FixtureRequest, place: str) -> "Distances":
    from tests.support.places import Distances

    return Distances(request.config.getoption("--distances"), place, request.node.name)


@pytest.fixture
def kill_launched_runs(tmp_path: Path) -> Iterator[None]:
    """Kill every process of a launched run that is left after the test, also if the test fails."""
    yield
    from tests.support.launching import processes_of

    for process in processes_of(tmp_path):
        process.kill()
