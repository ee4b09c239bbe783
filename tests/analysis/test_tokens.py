"""Cosines of the tokens against hooks on a plain timm model, for our student and timm's."""

from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from fastdeit.analysis.tokens import has_two_tokens, measure_tokens, summarise_tokens
from fastdeit.models.student import Student, build_student

NAME = "deit_tiny_distilled_patch16_224"
SIZES: dict[str, Any] = {"embed_dim": 24, "depth": 3, "num_heads": 3, "num_classes": 5}


@pytest.fixture(scope="module")
def theirs() -> Any:
    """Return a timm model whose heads and tokens differ."""
    torch.manual_seed(0)
    model: Any = timm.create_model(NAME, img_size=32, patch_size=8, **SIZES).eval()
    drawn = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=drawn))
    return model


@pytest.fixture(scope="module")
def ours(theirs: Any) -> Student:
    model = build_student(NAME, image_size=32, patch_size=8, qkv_bias=True, **SIZES).eval()
    model.load_state_dict(theirs.state_dict())
    return model


def draw_images(batch: int = 3) -> torch.Tensor:
    return torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def hooked(model: Any, images: torch.Tensor) -> torch.Tensor:
    """Return the cosines (B, depth + 2) of what hooks of timm's model see."""
    seen: list[torch.Tensor] = []
    handles = [model.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))]
    for module in [*model.blocks, model.norm]:
        handles.append(module.register_forward_hook(lambda _, __, out: seen.append(out)))
    model(images)
    for handle in handles:
        handle.remove()
    return torch.stack([F.cosine_similarity(x[:, 0], x[:, 1], dim=-1) for x in seen], 1)


def test_cosines_are_those_that_hooks_see(ours: Student, theirs: Any) -> None:
    expected = hooked(theirs, draw_images())
    assert expected.shape == (3, 5) and expected.std(0)[1:].min() > 1e-3
    for model in (theirs, ours):
        cosines = measure_tokens(model, draw_images())
        torch.testing.assert_close(cosines, expected, rtol=0, atol=1e-5)


def test_a_summary_has_mean_and_deviation_by_layer(theirs: Any) -> None:
    found = summarise_tokens(theirs, measure_tokens(theirs, draw_images()))
    names = ["input", "layer 1", "layer 2", "layer 3", "final norm"]
    assert [layer.name for layer in found.layers] == names
    expected = hooked(theirs, draw_images())
    for layer, values in zip(found.layers, expected.T, strict=True):
        assert layer.mean == pytest.approx(float(values.mean()), abs=1e-5)
        assert layer.std == pytest.approx(float(values.std(correction=0)), abs=1e-5)
    assert found.layers[0].std == pytest.approx(0, abs=1e-6)


def test_known_tokens_and_heads_have_known_cosines(ours: Student) -> None:
    model = build_student(NAME, image_size=32, patch_size=8, **SIZES).eval()
    one, two = torch.eye(24)[:2]
    with torch.no_grad():
        model.pos_embed.zero_()
        model.cls_token.copy_(one)
        model.dist_token.copy_(-3 * one)
        model.head.weight.copy_(one.expand(5, -1))  # type: ignore[operator]
        model.head_dist.weight.copy_((one + two).expand(5, -1))  # type: ignore[operator]
    found = summarise_tokens(model, measure_tokens(model, draw_images()))
    assert found.learned == found.layers[0].mean == -1
    assert found.heads is not None and found.heads.mean == pytest.approx(0.5**0.5)
    model.reset_classifier(0)
    assert summarise_tokens(model, measure_tokens(model, draw_images())).heads is None


def test_positions_belong_to_the_input_where_tokens_have_one() -> None:
    sizes = {**SIZES, "image_size": 32, "patch_size": 8, "reg_tokens": 2}
    for no_embed_class in (False, True):
        model = Student(no_embed_class=no_embed_class, **sizes).eval()
        found = summarise_tokens(model, measure_tokens(model, draw_images()))
        assert (found.layers[0].mean == pytest.approx(found.learned)) is no_embed_class


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "levit_128s", "resnet18"])
def test_other_models_have_no_two_tokens(name: str) -> None:
    with torch.device("meta"):
        model: nn.Module = timm.create_model(name)
    assert not has_two_tokens(model)
