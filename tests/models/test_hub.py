"""config.json: with it timm alone builds each model that we train, and what it sees."""

import json
import os
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from fastdeit.config.schema import Config
from fastdeit.models.build import build_model, hub_config
from fastdeit.models.hub import EvalView, describe_model, read_class_names
from fastdeit.models.sizes import SIZES
from fastdeit.models.student import Student
from fastdeit.storage.run_folder import RunFolder

CLASSES = ("cat", "dog", "eel", "fly")
SMALL: dict[str, object] = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
MODELS: dict[str, dict[str, object]] = {
    "distilled": {"model": "deit_tiny_distilled_patch16_224", **SMALL},
    "distilled, biases": {"model": "deit_small_distilled_patch16_384", **SMALL, "qkv_bias": True},
    "plain": {"model": "deit_base_patch16_224", **SMALL},
    "ConvNet": {"model": "test_resnet"},
    "of one size": {"model": "test_vit"},
    "with a tag": {"model": "test_resnet.r160_in1k"},
}


def make(path: Path, model: dict[str, object], **data: object) -> tuple[RunFolder, nn.Module]:
    """Write the files that timm needs of a model with random weights; return it for evaluation."""
    config = Config().replace(
        model=model, data={"input_size": 64, **data}, distill={"distillation_type": "none"}
    )
    ours = build_model(config, CLASSES)[0].eval()
    for name, parameter in ours.named_parameters():
        if "head" in name or "fc" in name:  # so that the two heads differ
            nn.init.normal_(parameter)
    folder = RunFolder(path)
    save_file(ours.state_dict(), folder.model)
    folder.model_config.write_text(json.dumps(hub_config(config, CLASSES, ours)))
    return folder, ours


@pytest.mark.parametrize("name", MODELS)
def test_timm_builds_the_same_model(name: str, tmp_path: Path) -> None:
    folder, ours = make(tmp_path, MODELS[name])
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(theirs(images), ours(images), rtol=1e-4, atol=1e-5)
    assert theirs.pretrained_cfg["label_names"] == list(CLASSES)
    assert theirs.num_features == json.loads(folder.model_config.read_text())["num_features"]
    # the factory for users of the registry, without weights
    again = timm.create_model(f"local-dir:{folder}")
    shapes = {key: value.shape for key, value in ours.state_dict().items()}
    assert {key: value.shape for key, value in again.state_dict().items()} == shapes


@pytest.mark.parametrize("name", MODELS)
def test_timm_gives_a_new_head_for_other_classes(name: str, tmp_path: Path) -> None:
    folder, ours = make(tmp_path, MODELS[name])
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=7)
    assert theirs.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 7)
    new = {"head.weight", "head.bias", "head_dist.weight", "head_dist.bias"} | {
        f"{theirs.pretrained_cfg['classifier']}.{part}" for part in ("weight", "bias")
    }
    own = ours.state_dict()
    kept = {key: value for key, value in theirs.state_dict().items() if key not in new}
    assert len(kept) > 10
    assert all(torch.equal(value, own[key]) for key, value in kept.items())


@pytest.mark.parametrize("name", ["distilled", "ConvNet"])
def test_timm_sees_what_the_evaluation_saw(name: str, tmp_path: Path) -> None:
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    view = {"mean": mean, "std": std, "eval_crop_ratio": 0.9}
    for number, eval_size in enumerate((0, 96)):
        (tmp_path / str(number)).mkdir()
        made = {**view, "eval_input_size": eval_size}
        folder, ours = make(tmp_path / str(number), MODELS[name], **made)
        theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        side = eval_size or 64
        seen = timm.data.resolve_model_data_config(theirs)
        assert tuple(seen.pop("input_size")) == (3, side, side)
        assert seen == {
            "interpolation": "bicubic",
            "mean": pytest.approx(mean),
            "std": pytest.approx(std),
            "crop_pct": 0.9,
            "crop_mode": "center",
        }
        images = torch.randn(3, 3, side, side)
        with torch.no_grad():  # the position embedding is resized in the same way
            torch.testing.assert_close(theirs(images), ours(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("ratio", [0.875, 0.9, 224 / 256, 0.95, 1.0, 1 / 3])
def test_timm_resizes_to_the_same_side(ratio: float) -> None:
    """The side as data/graphs/eval_crop.py computes it, whatever a float rounds to."""
    stored = json.loads(json.dumps(ratio))
    for size in range(1, 600):
        resize = timm.data.create_transform((3, size, size), crop_pct=stored).transforms[0]
        assert resize.size == int(size / ratio)


def test_every_student_has_a_description_in_timm() -> None:
    view = EvalView(224, (0.5,) * 3, (0.5,) * 3, 0.875)
    for name, size in SIZES.items():
        student = Student(
            embed_dim=32, depth=1, num_heads=2, distilled=size.distilled, num_classes=2
        )
        described = describe_model(name, student, view, ("a", "b"))
        assert timm.is_model(described["architecture"])
        assert described["pretrained_cfg"]["fixed_input_size"]
        heads = ["head", "head_dist"] if size.distilled else "head"
        assert json.loads(json.dumps(described))["pretrained_cfg"]["classifier"] == heads


def test_class_names_that_are_not_utf8_stay_strict_json_and_are_read_again(tmp_path: Path) -> None:
    classes = (os.fsdecode(b"K\xe4se"), "猫\n")
    folder, ours = make(tmp_path, MODELS["ConvNet"])
    description = hub_config(Config().replace(model={"model": "test_resnet"}), classes, ours)
    folder.model_config.write_text(json.dumps(description, ensure_ascii=False), encoding="utf-8")
    assert description["label_names"] == [r"K\udce4se", "猫\n"]
    assert read_class_names(folder.model, {}) == classes
