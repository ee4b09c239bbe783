"""`export_model`: what the path decides, and disks that are full."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastdeit.export.forms import export_model
from fastdeit.inference.load import LoadedModel, load_model
from tests.support.full_disk import limit_file_size
from tests.support.images import CLASSES
from tests.support.launching import ROOT
from tests.support.trained import write_student


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_model(write_student(tmp_path_factory.mktemp("run"), CLASSES))


@pytest.mark.parametrize("name", ["x", "x.pt2", "x.onnx"])
def test_a_full_disk_leaves_nothing_of_an_export(
    name: str, loaded: LoadedModel, tmp_path: Path
) -> None:
    if name.endswith("onnx"):
        pytest.importorskip("onnxruntime")
    with limit_file_size(2000), pytest.raises(ValueError, match="--output must be .* be written"):
        export_model(loaded, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_timm_could_not_open_is_refused(loaded: LoadedModel, tmp_path: Path) -> None:
    for name in (os.fsdecode(b"K\xe4se"), "a\nb"):
        with pytest.raises(ValueError, match="--output must be a folder whose path has printable"):
            export_model(loaded, tmp_path / name)
    export_model(loaded, tmp_path / "Kä se")
    assert [path.name for path in tmp_path.iterdir()] == ["Kä se"]


def test_a_folder_needs_no_package_of_onnx(tmp_path: Path) -> None:
    run = write_student(tmp_path / "run", CLASSES)
    code = (
        "import sys\n"
        "sys.modules['onnx'] = sys.modules['onnxruntime'] = sys.modules['onnxscript'] = None\n"
        "from fastdeit.commands.export import export_command\n"
        "sys.exit(export_command(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-c", code, str(run), "--output", str(tmp_path / "x")]
    subprocess.run(command, check=True, cwd=ROOT)
