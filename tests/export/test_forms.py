"""`export_model`: what the path decides, and disks that are full."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

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


class Odd(nn.Module):
    """A network that torch or ONNX cannot record: a branch on values, or an operator of torch."""

    num_classes = 3

    def __init__(self, has_branch: bool) -> None:
        super().__init__()
        self.head = nn.Linear(3, 3)
        self.num_features = 3
        self.has_branch = has_branch

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        colours = images.mean((2, 3))
        if self.has_branch and colours.sum() > 0:
            colours = colours * 2
        return self.head(torch.special.bessel_j0(colours))


@pytest.mark.parametrize(
    ("has_branch", "name", "message"),
    [
        (True, "x.pt2", "^torch.export cannot record test_vit: Could not guard on data-dep[^\n]*$"),
        (False, "x.onnx", "^test_vit has no form in ONNX: No ONNX function[^\n]*bessel_j0[^\n]*$"),
    ],
)
def test_a_network_that_cannot_be_recorded_is_one_line(
    has_branch: bool,
    name: str,
    message: str,
    loaded: LoadedModel,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    if name.endswith("onnx"):
        pytest.importorskip("onnxruntime")
    odd = dataclasses.replace(loaded, model=Odd(has_branch).eval(), name="test_vit")
    with pytest.raises(ValueError, match=message):
        export_model(odd, tmp_path / name)
    assert not list(tmp_path.iterdir()) and capfd.readouterr() == ("", "")


def test_a_folder_that_timm_could_not_open_is_refused(loaded: LoadedModel, tmp_path: Path) -> None:
    for name in (os.fsdecode(b"K\xe4se"), "a\nb"):
        with pytest.raises(ValueError, match="--output must be a folder whose path has printable"):
            export_model(loaded, tmp_path / name)
    export_model(loaded, tmp_path / "Kä se")
    assert [path.name for path in tmp_path.iterdir()] == ["Kä se"]


@pytest.mark.slow
def test_a_folder_needs_no_package_of_onnx(tmp_path: Path) -> None:
    run = write_student(tmp_path / "run", CLASSES)
    code = (
        "import sys\n"
        "sys.modules['onnx'] = sys.modules['onnxruntime'] = sys.modules['onnxscript'] = None\n"
        "from fastdeit.commands.models.export import export_command\n"
        "sys.exit(export_command(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-c", code, str(run), "--output", str(tmp_path / "x")]
    subprocess.run(command, check=True, cwd=ROOT)
