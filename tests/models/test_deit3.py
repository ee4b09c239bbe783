"""DeiT III, LayerScale and registers against timm's models and deit's file form."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from fastdeit.models.network import build_network, read_weight_file
from fastdeit.models.sizes import SIZES, infer_student_sizes
from fastdeit.models.student import Student, build_student
from fastdeit.models.weights import fit_student_weights, read_weights
from tests.models.test_student import make_images, make_student, perturb, slow_forward

NAMES = [name for name in SIZES if name.startswith("deit3_")]
PARAMETERS = {"small": 22.1, "medium": 38.8, "base": 86.6, "large": 304.4, "huge": 632.1}
"""In millions, of 224 px: table of deit's README_revenge.md."""


def build_pair(name: str, image_size: int, **arguments: Any) -> tuple[nn.Module, Student]:
    """Return timm's model with random weights, and ours with the same."""
    theirs = timm.create_model(name, img_size=image_size, num_classes=7, **arguments).eval()
    perturb(theirs)
    ours = build_student(name, num_classes=7, image_size=image_size, drop_path=0.0, **arguments)
    assert fit_student_weights(ours, theirs.state_dict()) == []
    return theirs, ours.eval()


def test_the_names_are_timms() -> None:
    assert sorted(NAMES) == sorted(timm.list_models("deit3_*"))


@pytest.mark.parametrize("name", NAMES)
def test_names_and_shapes_of_weights_are_timms(name: str) -> None:
    with torch.device("meta"):
        theirs = timm.create_model(name).state_dict()
        ours = build_student(name, num_classes=1000).state_dict()
    assert {key: value.shape for key, value in ours.items()} == {
        key: value.shape for key, value in theirs.items()
    }
    millions = sum(value.numel() for value in ours.values()) / 1e6
    if name.endswith("224"):
        assert millions == pytest.approx(PARAMETERS[name.split("_")[1]], abs=0.06)
    found = infer_student_sizes(ours, {"model": name})
    named = SIZES[name]._asdict()
    assert found.items() >= {key: named[key] for key in named if key in found}.items()
    assert set(named) - set(found) == {"constant_drop_path"}


@pytest.mark.parametrize("name", NAMES)
def test_shallow_models_give_timms_logits(name: str) -> None:
    patch = SIZES[name].patch_size
    theirs, ours = build_pair(name, 4 * patch, depth=2)
    images = make_images(2, 4 * patch)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-5, atol=1e-5)
        perturb(ours)
        theirs.load_state_dict(ours.state_dict(), strict=True)
        torch.testing.assert_close(theirs(images), ours(images), rtol=1e-5, atol=1e-5)


def test_a_whole_model_gives_timms_logits() -> None:
    theirs, ours = build_pair("deit3_small_patch16_224", 224)
    images = make_images(2, 224)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "deit3_small_patch16_224"])
def test_registers_and_layer_scale_give_timms_logits_and_gradients(name: str) -> None:
    parts = {"reg_tokens": 4, "init_values": 0.5, "qkv_bias": True}
    theirs, ours = build_pair(name, 64, depth=2, **parts)
    images = make_images(2, 64)
    outputs = [model.train()(images) for model in (ours, theirs)]
    torch.testing.assert_close(*outputs, rtol=0, atol=1e-5)
    for logits in outputs:
        logits.square().sum().backward()
    expected = dict(theirs.named_parameters())
    for key, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[key].grad, rtol=1e-3, atol=1e-4)
    assert ours.reg_token.grad is not None and ours.reg_token.grad.abs().sum() > 0


def test_all_parts_together_equal_the_slow_loop() -> None:
    parts = {"reg_tokens": 3, "init_values": 0.5, "no_embed_class": True, "qkv_bias": True}
    student = make_student(**parts, drop_path=0.4, constant_drop_path=True).train()
    perturb(student)
    images = make_images(4, 32)
    keep = torch.rand(4, 3, 2, generator=torch.Generator().manual_seed(3)) > 0.4
    with torch.no_grad():
        heads = student(images, keep)
        for row in range(4):
            expected = slow_forward(student, images[row], keep[row])
            found = [heads[0][row], heads[1][row]]
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_initial_weights_of_the_new_parts() -> None:
    student = build_student("deit3_small_patch16_224", num_classes=2, depth=1, reg_tokens=2)
    assert student.drop_path_rates == (0.1,)
    state = student.state_dict()
    for key in ("blocks.0.ls1.gamma", "blocks.0.ls2.gamma"):
        assert torch.equal(state[key], torch.full((384,), 1e-4))
    assert 0 < state["reg_token"].std() < 2e-6
    assert student.no_weight_decay() == {"pos_embed", "cls_token", "dist_token", "reg_token"}


def test_weights_in_deits_form_load(tmp_path: Path) -> None:
    theirs, ours = build_pair("deit3_small_patch16_224", 64, depth=2)
    named = {
        key.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): value
        for key, value in theirs.state_dict().items()
    }
    assert "blocks.1.gamma_2" in named
    torch.save({"model": named}, tmp_path / "deit_3_small.pth")
    state, _ = read_weights(tmp_path / "deit_3_small.pth")
    assert set(state) == set(ours.state_dict())
    file = read_weight_file(tmp_path / "deit_3_small.pth")
    student = build_network("deit3_small_patch16_224", file, size=64)
    images = make_images(1, 64)
    assert torch.equal(student.eval()(images), ours(images))


@pytest.mark.parametrize("no_embed_class", [False, True])
def test_positions_are_resized_without_those_of_the_tokens(no_embed_class: bool) -> None:
    parts = {"reg_tokens": 2, "no_embed_class": no_embed_class}
    student = make_student(**parts).eval()
    other = make_student(**parts, image_size=48).eval()
    perturb(student)
    notes = fit_student_weights(other, student.state_dict())
    assert notes == ["position embedding resized from 4 x 4 to 6 x 6 patches"]
    images = make_images(2, 48)
    torch.testing.assert_close(student(images), other(images))


@pytest.mark.parametrize("no_embed_class", [False, True])
def test_a_small_grid_with_registers_is_read_back(tmp_path: Path, no_embed_class: bool) -> None:
    # 16 + 9 = 25 positions: 5 x 5 patches, or 4 x 4 and nine tokens
    size = 32 if not no_embed_class else 40
    parts = {"reg_tokens": 8, "distilled": False, "no_embed_class": no_embed_class}
    source = make_student(**parts, image_size=size).eval()
    assert source.pos_embed.shape[1] == 25
    metadata = {"model": "deit_tiny_patch16_224", "num_heads": "3"}
    metadata["no_embed_class"] = "true" if no_embed_class else "false"
    save_file(source.state_dict(), tmp_path / "w.safetensors", metadata=metadata)
    file = read_weight_file(tmp_path / "w.safetensors")
    student = build_network(file.architecture, file, size=size)
    images = make_images(1, size)
    assert torch.equal(student.eval()(images), source(images))
