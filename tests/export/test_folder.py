"""The folder for timm and the Hub: timm and fastdeit load the same model from it."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from fastdeit.export import folder
from fastdeit.export.folder import export_folder
from fastdeit.inference.load import LoadedModel, build_transform, load_model
from fastdeit.inference.views import change_view
from fastdeit.models.hub import EvalView
from fastdeit.storage.tensor_files import read_metadata
from tests.support.images import CLASSES
from tests.support.trained import VIEW, write_student


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_model(write_student(tmp_path_factory.mktemp("run"), CLASSES))


def photographs(view: EvalView) -> torch.Tensor:
    transform = build_transform(view)
    return torch.stack([transform(Image.fromarray(image)) for image in load_sample_images().images])


def load_in_timm(path: Path, **arguments: Any) -> Any:
    return timm.create_model(f"local-dir:{path}", pretrained=True, **arguments).eval()


def test_timm_gives_the_mean_and_in_training_both_heads(
    loaded: LoadedModel, tmp_path: Path
) -> None:
    path = tmp_path / "a b#c?"
    export_folder(loaded, path)
    assert {file.name for file in path.iterdir()} == {
        "model.safetensors",
        "config.json",
        "README.md",
    }
    model = load_in_timm(path)
    images = photographs(VIEW)
    torch.testing.assert_close(model(images), loaded.model(images), rtol=0, atol=1e-5)
    assert model.pretrained_cfg["label_names"] == list(CLASSES)
    model.train().set_distilled_training(True)
    expected = loaded.model.forward_heads(images)  # type: ignore[operator]
    torch.testing.assert_close(model(images), expected, rtol=0, atol=1e-5)


def test_what_we_wrote_we_read_with_the_same_bits(loaded: LoadedModel, tmp_path: Path) -> None:
    export_folder(loaded, tmp_path / "first")
    again = load_model(f"local-dir:{tmp_path / 'first'}")
    assert (again.weights, again.view, again.classes) == (loaded.weights, VIEW, CLASSES)
    export_folder(again, tmp_path / "second")
    for name in ("model.safetensors", "config.json"):
        first, second = (tmp_path / folder / name for folder in ("first", "second"))
        assert first.read_bytes() == second.read_bytes()
    images = photographs(VIEW)
    assert torch.equal(again.model(images), loaded.model(images))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_weights_take_half_the_space(
    loaded: LoadedModel, tmp_path: Path, precision: Any
) -> None:
    whole = export_folder(loaded, tmp_path / "whole")
    half = export_folder(loaded, tmp_path / "half", precision=precision)
    assert half.size < 0.7 * whole.size
    assert 0 < half.difference.largest < half.difference.tolerance
    again = load_model(tmp_path / "half")
    expected = {name: value.to(half_dtype(precision)) for name, value in state_of(loaded).items()}
    for name, value in state_of(again).items():
        assert torch.equal(value, expected[name].float()), name


def half_dtype(precision: str) -> torch.dtype:
    return {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def state_of(loaded: LoadedModel) -> dict[str, torch.Tensor]:
    return loaded.model.state_dict()


def test_another_view_is_that_of_the_folder(tmp_path: Path) -> None:
    loaded = load_model(write_student(tmp_path / "run", CLASSES))
    view = VIEW._replace(size=48, crop_pct=0.9, interpolation="bilinear")
    export_folder(change_view(loaded, view), tmp_path / "larger")
    model = load_in_timm(tmp_path / "larger")
    assert timm.data.resolve_model_data_config(model)["input_size"] == (3, 48, 48)
    assert load_model(tmp_path / "larger").view == view
    alone = shutil.copy(tmp_path / "larger" / "model.safetensors", tmp_path / "alone.safetensors")
    assert load_model(alone).view == view
    metadata = read_metadata(tmp_path / "larger" / "model.safetensors")
    assert (metadata["input_size"], metadata["crop_pct"]) == ("48", "0.9")
    assert model(photographs(view)).shape == (2, len(CLASSES))


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "deit_tiny_distilled_patch16_224"])
def test_a_timm_model_of_another_shape_is_built_again(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    shapes: dict[str, dict[str, Any]] = {
        "test_resnet": {},
        "test_vit": {"img_size": 96, "embed_dim": 32, "num_heads": 2, "class_token": False},
        "deit_tiny_distilled_patch16_224": {"img_size": 96, "depth": 2, "drop_path_rate": 0.1},
    }
    if name == "test_vit":
        shapes[name]["global_pool"] = "avg"
    model = timm.create_model(name, num_classes=4, **shapes[name]).eval()
    view = EvalView(96, (0.4,) * 3, (0.6,) * 3, 0.9, "bilinear")
    export_folder(LoadedModel(model, name, view, None, name, "", {}), tmp_path / "x")
    images = photographs(view)
    torch.testing.assert_close(load_in_timm(tmp_path / "x")(images), model(images))
    torch.testing.assert_close(load_model(tmp_path / "x").model(images), model(images))


def test_only_a_new_or_empty_folder_is_written(loaded: LoadedModel, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    export_folder(loaded, taken)
    before = {file.name: file.read_bytes() for file in taken.iterdir()}
    with pytest.raises(ValueError, match="--output must be a new or empty folder"):
        export_folder(loaded, taken)
    assert before == {file.name: file.read_bytes() for file in taken.iterdir()}
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="--output must be a folder that can be written"):
        export_folder(loaded, tmp_path / "file" / "x")


def test_a_folder_that_differs_is_refused_and_nothing_stays(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    describe = folder.describe_model
    for field, value in (("mean", [0.1, 0.4, 0.3]), ("crop_pct", 0.5)):

        def damage(*facts: Any, field: str = field, value: Any = value) -> dict[str, Any]:
            config = describe(*facts)
            config["pretrained_cfg"][field] = value
            return config

        monkeypatch.setattr(folder, "describe_model", damage)
        with pytest.raises(ValueError, match="timm would show the model other images"):
            export_folder(loaded, tmp_path / "x")
    monkeypatch.setattr(folder, "describe_model", describe)
    write = folder.write_tensors

    def shift(path: Path, state: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
        write(path, state | {"head.bias": state["head.bias"] + 0.01}, metadata)

    monkeypatch.setattr(folder, "write_tensors", shift)
    with pytest.raises(ValueError, match=r"differ from the model's by 5.0e-03"):
        export_folder(loaded, tmp_path / "x")
    assert not list(tmp_path.iterdir())
