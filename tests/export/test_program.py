"""Exported programs: plain torch runs them, and they can teach."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fastdeit.export import program
from fastdeit.export.check import read_photographs
from fastdeit.export.program import export_program
from fastdeit.inference.load import LoadedModel, load_model
from fastdeit.models.teachers.teacher import load_teacher
from fastdeit.models.teachers.view import Preprocessing
from tests.support.images import CLASSES
from tests.support.launching import ROOT
from tests.support.trained import VIEW, write_student

ALONE = """
import sys
sys.modules["fastdeit"] = sys.modules["timm"] = None  # an import of them fails
import torch
path, images, logits = sys.argv[1:]
run = torch.export.load(path).module()
given = torch.load(images)
torch.save([run(given), run(given[:1])], logits)
"""


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_model(write_student(tmp_path_factory.mktemp("run"), CLASSES))


@pytest.fixture(scope="module")
def path(loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("program") / "x.pt2"
    export_program(loaded, path)
    return path


def test_torch_alone_runs_it_for_any_batch(loaded: LoadedModel, path: Path, tmp_path: Path) -> None:
    images = read_photographs(VIEW, 5)
    torch.save(images, tmp_path / "images.pt")
    files = [path, tmp_path / "images.pt", tmp_path / "logits.pt"]
    subprocess.run([sys.executable, "-c", ALONE, *map(str, files)], check=True, cwd=tmp_path)
    five, one = torch.load(tmp_path / "logits.pt")
    torch.testing.assert_close(five, loaded.model(images), rtol=0, atol=1e-4)
    torch.testing.assert_close(one, five[:1], rtol=0, atol=1e-4)


def test_images_of_any_dtype_and_autocast_are_accepted(loaded: LoadedModel, path: Path) -> None:
    run: Any = program.load_program(path)
    images = read_photographs(VIEW, 3)
    expected = loaded.model(images)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        logits = run(images.to(dtype))
        assert logits.dtype == torch.float32
        torch.testing.assert_close(logits, expected, rtol=0, atol=0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(run(images), expected, rtol=0, atol=0.1)


def test_it_is_a_teacher_with_its_own_view(loaded: LoadedModel, path: Path) -> None:
    for dtype, atol in ((torch.float32, 1e-4), (torch.bfloat16, 0.1)):
        teacher = load_teacher(
            "export",
            path,
            num_classes=len(CLASSES),
            device="cpu",
            dtype=dtype,
            student=Preprocessing((0.5,) * 3, (0.5,) * 3, 64),
        )
        assert teacher.preprocessing == (VIEW.mean, VIEW.std, VIEW.size)
        assert f"{path}: config.json" in teacher.describe_view()
        assert teacher.classes == CLASSES
        images = torch.randn(2, 3, 64, 64)
        expected = loaded.model(teacher._prepare(images).float())
        torch.testing.assert_close(teacher(images), expected, rtol=0, atol=atol)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_and_both_heads(loaded: LoadedModel, tmp_path: Path, precision: Any) -> None:
    path = tmp_path / "half.pt2"
    exported = export_program(loaded, path, heads="both", precision=precision)
    assert 1e-5 < exported.difference.largest < exported.difference.tolerance
    run: Any = program.load_program(path)
    assert {str(weight.dtype) for weight in run.parameters()} == {
        f"torch.{'bfloat16' if precision == 'bf16' else 'float16'}"
    }
    images = read_photographs(VIEW, 3)
    expected = loaded.model.forward_heads(images)  # type: ignore[operator]
    torch.testing.assert_close(run(images), expected, rtol=0, atol=0.3)


def test_the_size_is_that_of_the_view(loaded: LoadedModel, tmp_path: Path) -> None:
    larger = LoadedModel(**{**vars(loaded), "view": VIEW._replace(size=48)})
    exported = export_program(larger, tmp_path / "x.pt2")
    assert exported.difference.largest < 1e-5
    run: Any = program.load_program(tmp_path / "x.pt2")
    # resized before, not in each call
    assert run.state_dict()["model.pos_embed"].shape == (1, 2 + 6 * 6, 24)
    images = torch.randn(2, 3, 48, 48)
    torch.testing.assert_close(run(images), loaded.model(images))
    assert loaded.model.image_size == 32


def test_the_file_names_no_place(path: Path) -> None:
    data = path.read_bytes()
    assert str(ROOT).encode() not in data and b"site-packages" not in data
    extra = {"config.json": ""}
    torch.export.load(path, extra_files=extra)
    described = json.loads(extra["config.json"])
    assert described["label_names"] == list(CLASSES) and described["outputs"] == ["logits"]


def test_the_same_weights_give_the_same_file(
    loaded: LoadedModel, path: Path, tmp_path: Path
) -> None:
    export_program(loaded, tmp_path / "x.pt2")
    assert (tmp_path / "x.pt2").read_bytes() == path.read_bytes()


@pytest.mark.slow
def test_an_export_that_differs_is_refused_and_the_older_file_stays(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.pt2"
    path.write_bytes(b"older")
    load: Any = program.load_program
    damages: list[tuple[Any, str]] = [
        (lambda logits: logits + 0.01, r"model's by 1.0e-02, at most 1.0e-04"),
        (lambda logits: logits[:, :2], r"must give .* \(got \(1, 8, 2\)\)"),
    ]
    for damage, message in damages:

        def load_damaged(path: Path, damage: Any = damage) -> Any:
            run = load(path)
            return lambda images: damage(run(images))

        monkeypatch.setattr(program, "load_program", load_damaged)
        with pytest.raises(ValueError, match=message):
            export_program(loaded, path)
    assert path.read_bytes() == b"older" and list(tmp_path.iterdir()) == [path]
