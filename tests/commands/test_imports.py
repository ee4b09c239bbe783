"""What a command imports, and when: `fastdeit train` reports a mistake before it loads what only
training needs."""

import gc
import json
import subprocess
import sys

import pytest

from fastdeit.commands.imports import pause_collection
from tests.support.images import write_shapes
from tests.support.launching import FLAGS, ROOT, clean_environment

NOT_BEFORE_THE_CHECKS = {
    *("matplotlib", "numba", "nvidia.dali", "scipy", "sklearn", "tensorboard"),
    *("fastdeit.run.loop", "fsspec", "transformers"),
}
NOT_BEFORE_THE_FIRST_STEP = {
    *("matplotlib", "sklearn", "tensorboard", "fsspec", "setuptools", "pkg_resources"),
    *("torch._inductor.compile_fx", "transformers"),
}
TRACED = """
import json, sys
from fastdeit.commands.runs.train import train_command

seen = {"command": sorted(sys.modules)}

def see(place, name, moment):
    original = getattr(place, name)
    def call(*args, **kwargs):
        seen.setdefault(moment, sorted(sys.modules))
        return original(*args, **kwargs)
    setattr(place, name, call)

import fastdeit.library.training
see(fastdeit.library.training, "check_config", "checks")
from fastdeit.training.trainer import Trainer
see(Trainer, "train_step", "first step")
assert train_command(sys.argv[2:]) == 0
json.dump(seen, open(sys.argv[1], "w"))
"""


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """Return the names of the modules that a run of one step has imported, by moment."""
    folder = tmp_path_factory.mktemp("imports")
    data = write_shapes(folder / "data")
    flags = [*FLAGS, "--data-path", str(data), "--stop-after-steps", "1"]
    command = [sys.executable, "-c", TRACED, str(folder / "seen.json"), *flags]
    subprocess.run(
        [*command, "--output-dir", str(folder / "run")],
        check=True,
        cwd=ROOT,
        env=clean_environment(),
        stdout=subprocess.DEVNULL,
    )
    return {
        when: set(names) for when, names in json.loads((folder / "seen.json").read_text()).items()
    }


def test_the_command_line_is_checked_without_torch(seen: dict[str, set[str]]) -> None:
    assert not {"torch", "numpy", "pyarrow", "pydantic", "timm"} & seen["command"]


def test_the_settings_are_checked_without_what_only_training_needs(
    seen: dict[str, set[str]],
) -> None:
    assert "timm" in seen["checks"]  # the check of the model's name needs it
    assert not NOT_BEFORE_THE_CHECKS & seen["checks"]


def test_the_first_step_starts_without_what_it_does_not_need(seen: dict[str, set[str]]) -> None:
    assert {"nvidia.dali", "deepspeed"} <= seen["first step"]
    assert not NOT_BEFORE_THE_FIRST_STEP & seen["first step"]


def test_help_imports_no_torch() -> None:
    code = (
        "import sys, fastdeit.__main__ as entry\n"
        "try: entry.main()\n"
        "finally: assert 'torch' not in sys.modules"
    )
    command = [sys.executable, "-c", code, "train", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "--batch-size" in done.stdout, done.stderr


def test_collection_pauses_and_what_was_imported_is_exempt() -> None:
    before = gc.get_freeze_count()
    with pause_collection():
        assert not gc.isenabled()
        with pause_collection():
            pass
        assert not gc.isenabled()
    assert gc.isenabled() and gc.get_freeze_count() > before
    gc.unfreeze()


def test_collection_resumes_after_an_error() -> None:
    with pytest.raises(ValueError, match="a mistake"), pause_collection():
        raise ValueError("a mistake")
    assert gc.isenabled()
    gc.unfreeze()


def test_collection_that_the_caller_switched_off_stays_off() -> None:
    gc.disable()
    try:
        with pause_collection():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
