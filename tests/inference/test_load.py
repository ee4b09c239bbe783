"""Any checkpoint loads: ours, timm's, deit's; and weights survive each round trip."""

import argparse
import json
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from torch import nn

from fastdeit.inference.load import LoadedModel, load_model
from fastdeit.models.hub import EvalView, describe_model, describe_weights
from fastdeit.models.student import Student, build_student
from fastdeit.storage.run_folder import RunFolder
from fastdeit.storage.tensor_files import hash_tensors
from tests.models.test_student import make_images, perturb

CLASSES = ("cat", "dog", "eel")
VIEW = EvalView(64, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4), 0.9)
DISTILLED = "deit_tiny_distilled_patch16_224"
PARTS: dict[str, dict[str, Any]] = {
    "distilled": {},
    "with biases": {"qkv_bias": True},
    "plain": {"distilled": False},
    "another width": {"embed_dim": 40, "num_heads": 5, "patch_size": 8, "mlp_ratio": 4.0},
}


CONVNEXT = {
    r"^stem\.": "downsample_layers.0.",
    r"^stages\.(\d)\.blocks\.": r"stages.\1.",
    r"^stages\.(\d)\.downsample\.": r"downsample_layers.\1.",
    r"conv_dw": "dwconv",
    r"mlp\.fc": "pwconv",
    r"^head\.norm": "norm",
    r"^head\.fc": "head",
}
"""From timm's names of parameters to those in the files of ConvNeXt's authors."""


def random_student(name: str = DISTILLED, **parts: Any) -> Student:
    sizes = {"embed_dim": 48, "depth": 2, "num_heads": 3, "image_size": 64} | parts
    student = build_student(name, num_classes=len(CLASSES), **sizes).eval()
    perturb(student)
    return student


def write_run(path: Path, model: nn.Module, name: str = DISTILLED) -> RunFolder:
    """Write the files of weights that a run has; the EMA is another model of the same shape."""
    folder = RunFolder(path)
    path.mkdir()
    metadata = describe_weights(name, model, VIEW, CLASSES)
    save_file(model.state_dict(), folder.model, metadata)
    save_file({k: v + 0.01 for k, v in model.state_dict().items()}, folder.model_ema, metadata)
    folder.model_config.write_text(json.dumps(describe_model(name, model, VIEW, CLASSES)))
    return folder


def logits(model: nn.Module, size: int = 64) -> torch.Tensor:
    with torch.no_grad():
        return model(make_images(2, size))


def check(loaded: LoadedModel, model: nn.Module) -> None:
    """Assert that a loaded model is one of the same class, equal bit for bit."""
    assert type(loaded.model) is type(model) and not loaded.model.training
    assert torch.equal(logits(loaded.model), logits(model))
    assert loaded.weights == hash_tensors(model.state_dict())


@pytest.mark.parametrize("part", PARTS)
def test_a_run_folder_loads_as_it_was(part: str, tmp_path: Path) -> None:
    name = "deit_tiny_patch16_224" if part == "plain" else DISTILLED
    student = random_student(name, **PARTS[part])
    folder = write_run(tmp_path / "run", student, name)
    for source in (folder.path, f"local-dir:{folder}", folder.model):
        loaded = load_model(source)
        check(loaded, student)
        assert (loaded.name, loaded.view, loaded.classes) == (name, VIEW, CLASSES)
        assert loaded.source == str(source) and loaded.metadata["model"] == name
    ema = load_model(folder.path, ema=True)
    assert ema.weights == hash_tensors(load_file(folder.model_ema)) != loaded.weights
    assert (ema.view, ema.classes) == (VIEW, CLASSES)


def test_a_checkpoint_of_a_run_has_the_view_of_the_run(tmp_path: Path) -> None:
    student = random_student()
    folder = write_run(tmp_path / "run", student)
    step = folder.checkpoints / "step-00000003"
    step.mkdir(parents=True)
    for stem in ("model", "ema"):
        save_file(student.state_dict(), step / f"{stem}.safetensors", {"model": DISTILLED})
    for loaded in (load_model(step), load_model(step, ema=True)):
        check(loaded, student)
        assert (loaded.view, loaded.classes) == (VIEW, CLASSES)


@pytest.mark.parametrize("part", PARTS)
def test_ours_to_timm_to_ours_is_equal_bit_for_bit(part: str, tmp_path: Path) -> None:
    """The same tensors in the same class give the same logits; timm's class, whose operations have
    another order, gives them to 1e-5."""
    name = "deit_tiny_patch16_224" if part == "plain" else DISTILLED
    student = random_student(name, **PARTS[part])
    folder = write_run(tmp_path / "run", student, name)
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    torch.testing.assert_close(logits(theirs), logits(student), rtol=0, atol=1e-5)
    save_for_hf(theirs, tmp_path / "timm", safe_serialization=True)
    loaded = load_model(tmp_path / "timm")
    check(loaded, student)
    assert (loaded.view, loaded.classes) == (VIEW, CLASSES)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_timm_to_ours_to_timm_is_equal_bit_for_bit(name: str, tmp_path: Path) -> None:
    theirs = (
        timm.create_model(name, num_classes=len(CLASSES), img_size=64)
        if "vit" in name
        else (timm.create_model(name, num_classes=len(CLASSES)))
    )
    perturb(theirs.eval())
    save_for_hf(theirs, tmp_path / "timm", safe_serialization=True)
    ours = load_model(tmp_path / "timm")
    check(ours, theirs)
    folder = write_run(tmp_path / "run", ours.model, name)
    check(load_model(folder.path), theirs)
    again = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert torch.equal(logits(again), logits(theirs))


def published(name: str, **arguments: Any) -> nn.Module:
    """Return timm's model of a published name with random weights, two blocks deep."""
    model = timm.create_model(name, depth=2, num_classes=len(CLASSES), img_size=64, **arguments)
    perturb(model.eval())
    return model


@pytest.mark.parametrize("name", [DISTILLED, "deit_small_patch16_224"])
@pytest.mark.parametrize("ema", [False, True])
def test_deits_checkpoints_load(name: str, ema: bool, tmp_path: Path) -> None:
    theirs = published(name)
    other = {key: torch.zeros_like(value) for key, value in theirs.state_dict().items()}
    one, two = (other, theirs.state_dict()) if ema else (theirs.state_dict(), other)
    path = tmp_path / "checkpoint.pth"
    # as deit's main.py writes it
    args = argparse.Namespace(model=name, lr=5e-4)
    torch.save({"model": one, "model_ema": two, "epoch": 3, "args": args}, path)
    loaded = load_model(path, ema=ema, model=name)
    assert isinstance(loaded.model, Student)
    assert loaded.weights == hash_tensors(theirs.state_dict())
    torch.testing.assert_close(logits(loaded.model), logits(theirs), rtol=0, atol=1e-5)
    torch.save(loaded.model.state_dict(), tmp_path / "again.pth")
    check(load_model(tmp_path / "again.pth", model=name), loaded.model)


@pytest.mark.parametrize("key", ["state_dict", "state_dict_ema"])
@pytest.mark.parametrize("name", ["test_resnet", DISTILLED])
def test_timms_training_checkpoints_load(key: str, name: str, tmp_path: Path) -> None:
    theirs = published(name) if name == DISTILLED else timm.create_model(name, num_classes=3)
    state = {f"module.{name}": value for name, value in theirs.state_dict().items()}
    path = tmp_path / "model_best.pth.tar"
    torch.save({"epoch": 3, "arch": name, "state_dict": {}, key: state, "metric": 0.5}, path)
    loaded = load_model(path, ema=key.endswith("ema"), model=name)
    assert loaded.weights == hash_tensors(theirs.state_dict())


@pytest.mark.parametrize("size", [224, 384])
@pytest.mark.parametrize("distilled", ["", "_distilled"])
def test_published_deits_need_no_name(size: int, distilled: str, tmp_path: Path) -> None:
    name = f"deit_tiny{distilled}_patch16_{size}"
    student = build_student(name, num_classes=5, qkv_bias=True)
    torch.save({"model": student.state_dict()}, tmp_path / "weights.pth")
    loaded = load_model(tmp_path / "weights.pth")
    assert loaded.name == name and isinstance(loaded.model, Student)
    assert (loaded.model.image_size, loaded.model.num_heads) == (size, 3)


def test_weights_in_their_authors_form_go_through_timms_filter(tmp_path: Path) -> None:
    """ConvNeXt's files have other names than timm's model."""
    theirs = timm.create_model("test_convnext", num_classes=3)
    perturb(theirs.eval())
    state = {}
    for key, value in theirs.state_dict().items():
        for pattern, name in CONVNEXT.items():
            key = re.sub(pattern, name, key)
        state[key] = value
    assert "downsample_layers.0.0.weight" in state and "head.weight" in state
    torch.save({"model": state}, tmp_path / "convnext.pth")
    loaded = load_model(tmp_path / "convnext.pth", model="test_convnext")
    assert torch.equal(logits(loaded.model), logits(theirs))


def test_a_view_has_what_config_json_names(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", random_student())
    config = json.loads(folder.model_config.read_text())
    asked = {"interpolation": "bilinear", "crop_mode": "squash", "crop_pct": 1.0}
    config["pretrained_cfg"] |= asked | {"input_size": [3, 96, 96]}
    config["model_args"]["img_size"] = 96
    folder.model_config.write_text(json.dumps(config))
    view = load_model(folder.path).view
    assert view == EvalView(96, VIEW.mean, VIEW.std, 1.0, "bilinear", "squash")


def test_a_picture_goes_through_the_transform(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", random_student())
    loaded = load_model(folder.path)
    picture = Image.effect_noise((90, 70), 80).convert("RGB")
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True)
    config = timm.data.resolve_model_data_config(theirs)
    expected = timm.data.create_transform(**config)(picture)
    assert torch.equal(loaded.transform(picture), expected)
    assert loaded.model(expected[None]).shape == (1, 3)


def fail(source: object, **arguments: Any) -> str:
    with pytest.raises(ValueError) as caught:
        load_model(str(source), **arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_error_is_one_line_that_names_the_file(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", random_student())
    nameless = tmp_path / "nameless.pth"
    torch.save(timm.create_model("test_resnet").state_dict(), nameless)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(folder.model.read_bytes()[:5000])
    empty = tmp_path / "empty"
    empty.mkdir()
    assert fail(nameless) == f"{nameless}: does not name its architecture: name it (--model)"
    assert "the checkpoint does not fit test_vit" in fail(nameless, model="test_vit")
    assert "near: test_resnet" in fail(nameless, model="test_resne")
    assert fail(folder, model="resnet18").endswith(f"the file has the weights of {DISTILLED}")
    assert "no whole safetensors file" in fail(cut)
    assert fail(empty).startswith(f"no checkpoint at {empty}/model.safetensors")
    assert "holds no EMA" in fail(nameless, ema=True, model="test_resnet")
    assert "holds no EMA" in fail(folder.model, ema=True)
    folder.model_config.write_text("[]")
    assert fail(folder) == f"{folder.model_config}: must be a JSON object"
    folder.model_config.write_text("{")
    assert f"{folder.model_config} must be JSON" in fail(folder)


@pytest.mark.parametrize(
    "arguments",
    [{"depth": -1}, {"no_such": 1}, {"num_heads": "x"}, {"checkpoint_path": "/etc/passwd"}],
)
def test_arguments_of_a_file_build_a_network_or_fail_in_one_line(
    arguments: dict[str, Any], tmp_path: Path
) -> None:
    theirs = timm.create_model("test_vit", num_classes=3)
    save_for_hf(theirs, tmp_path / "timm", safe_serialization=True)
    place = tmp_path / "timm" / "config.json"
    config = json.loads(place.read_text()) | {"model_args": arguments}
    place.write_text(json.dumps(config))
    if "checkpoint_path" in arguments:
        assert load_model(tmp_path / "timm").weights == hash_tensors(theirs.state_dict())
    else:
        assert "test_vit" in fail(tmp_path / "timm")
