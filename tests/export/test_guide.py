"""docs/export.md: its Python runs."""

import re
from pathlib import Path

import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from fastdeit.export.forms import export_model
from fastdeit.inference.load import load_model
from tests.support.images import CLASSES
from tests.support.launching import ROOT
from tests.support.trained import write_student

BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs/export.md").read_text(), re.DOTALL)


@pytest.mark.slow
def test_the_python_of_the_guide_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    loaded = load_model(write_student(Path("runs/digits"), CLASSES))
    for path in ("digits", "digits.onnx", "digits.pt2"):
        export_model(loaded, path)
    Image.fromarray(load_sample_images().images[1]).save("photo.jpg")
    found: dict[str, object] = {}
    assert len(BLOCKS) == 4
    for block in BLOCKS:
        exec(block, found)
    in_timm, in_onnxruntime, difference = capsys.readouterr().out.split()
    assert in_timm == in_onnxruntime and in_timm in CLASSES
    assert 0 < float(difference) < 1e-4 and Path("copy.pt2").is_file()
