"""ONNX: onnxruntime computes what the model does, from the file alone."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from fastdeit.export import onnx_file
from fastdeit.export.onnx_file import export_onnx
from fastdeit.inference.load import LoadedModel, load_model
from fastdeit.models.hub import EvalView
from tests.support.images import CLASSES
from tests.support.launching import ROOT
from tests.support.trained import VIEW, write_student

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_model(write_student(tmp_path_factory.mktemp("run"), CLASSES))


@pytest.fixture(scope="module")
def both(loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "both.onnx"
    export_onnx(loaded, path, heads="both")
    return path


def open_session(path: Path) -> Any:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def read_properties(session: Any) -> dict[str, Any]:
    stored = session.get_modelmeta().custom_metadata_map
    return {name: json.loads(value) for name, value in stored.items()}


def photographs(properties: dict[str, Any]) -> torch.Tensor:
    """Return two photographs as the properties of the file say."""
    config = timm.data.resolve_data_config(pretrained_cfg=properties)
    transform = timm.data.create_transform(**config)
    return torch.stack([transform(Image.fromarray(image)) for image in load_sample_images().images])


def test_onnxruntime_gives_both_heads_of_any_batch(loaded: LoadedModel, both: Path) -> None:
    session = open_session(both)
    assert [node.name for node in session.get_outputs()] == ["cls", "dist"]
    (given,) = session.get_inputs()
    assert (given.name, given.shape) == ("images", ["batch", 3, 32, 32])
    pair = photographs(read_properties(session))
    for images in (pair[:1], pair, torch.cat([pair, pair.flip(3), pair[:1]])):
        outputs = session.run(None, {"images": images.numpy()})
        expected = loaded.model.forward_heads(images)  # type: ignore[operator]
        for output, logits in zip(outputs, expected, strict=True):
            torch.testing.assert_close(torch.from_numpy(output), logits, rtol=0, atol=1e-4)
    assert (outputs[0] != outputs[1]).any()


def test_the_properties_name_preprocessing_and_classes(both: Path) -> None:
    properties = read_properties(open_session(both))
    assert properties["architecture"] == "deit_tiny_distilled_patch16_224"
    assert properties["label_names"] == list(CLASSES)
    assert properties["outputs"] == ["cls", "dist"] and properties["precision"] == "fp32"
    seen = timm.data.resolve_data_config(pretrained_cfg=properties)
    assert seen["input_size"] == [3, 32, 32]
    named = (seen["mean"], seen["std"], seen["crop_pct"], seen["interpolation"])
    assert named == (list(VIEW.mean), list(VIEW.std), VIEW.crop_pct, VIEW.interpolation)


def test_the_file_names_no_place_and_no_code(both: Path) -> None:
    data = both.read_bytes()
    for word in (str(ROOT), "site-packages", "fastdeit", ".py"):
        assert word.encode() not in data
    onnx.checker.check_model(onnx.load(both), full_check=True)


@pytest.mark.slow
def test_the_same_weights_give_the_same_file(
    loaded: LoadedModel, both: Path, tmp_path: Path
) -> None:
    export_onnx(loaded, tmp_path / "x.onnx", heads="both")
    assert (tmp_path / "x.onnx").read_bytes() == both.read_bytes()


@pytest.mark.slow
def test_half_precision_halves_the_weights_and_takes_the_same_images(
    loaded: LoadedModel, tmp_path: Path
) -> None:
    path = tmp_path / "half.onnx"
    exported = export_onnx(loaded, path, precision="fp16")
    stored = onnx.load(path).graph.initializer
    weights = [tensor for tensor in stored if len(tensor.dims) > 1]
    assert len(weights) > 10
    assert {tensor.data_type for tensor in weights} == {onnx.TensorProto.FLOAT16}
    assert 0 < exported.difference.largest < exported.difference.tolerance
    session = open_session(path)
    images = photographs(read_properties(session))
    (logits,) = session.run(None, {"images": images.numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), loaded.model(images), rtol=0, atol=3e-2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_a_timm_model_has_one_output(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5).eval()
    view = EvalView(160, (0.5,) * 3, (0.5,) * 3, 0.95, "bilinear")
    loaded = LoadedModel(model, name, view, None, name, "", {})
    export_onnx(loaded, tmp_path / "x.onnx")
    session = open_session(tmp_path / "x.onnx")
    properties = read_properties(session)
    assert "label_names" not in properties and properties["interpolation"] == "bilinear"
    images = photographs(properties)
    (logits,) = session.run(None, {"images": images.numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), model(images), rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match=f"--heads must be mean, as {name} has one head"):
        export_onnx(loaded, tmp_path / "x.onnx", heads="both")


@pytest.mark.slow
def test_an_export_that_differs_is_refused_and_the_older_file_stays(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(b"older")
    encode = onnx_file._encode

    def damage(model: Any) -> bytes:
        bias = model.graph.initializers["model.head.bias"]
        bias.const_value.raw[0] += 0.01
        return encode(model)

    monkeypatch.setattr(onnx_file, "_encode", damage)
    with pytest.raises(ValueError, match=r"differ from the model's by 5.0e-03, at most 1.0e-04"):
        export_onnx(loaded, path)
    assert path.read_bytes() == b"older" and list(tmp_path.iterdir()) == [path]


def test_what_onnx_cannot_be_is_one_line(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="--precision must be fp32 or fp16 for ONNX"):
        export_onnx(loaded, tmp_path / "x.onnx", precision="bf16")
    monkeypatch.setattr(onnx_file, "_MAX_BYTES", 1000)
    with pytest.raises(ValueError, match="must be at most 1,000 bytes of weights"):
        export_onnx(loaded, tmp_path / "x.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ValueError, match="package onnxruntime: pip install 'fastdeit.onnx.'"):
        export_onnx(loaded, tmp_path / "x.onnx")
    assert not list(tmp_path.iterdir())
