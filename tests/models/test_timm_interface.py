"""The student's methods are timm's: the same results as timm's DeiT with the same weights."""

from typing import Any

import pytest
import timm
import torch
from timm.data import resolve_model_data_config

from fastdeit.models.student import Student, build_student

NAMES = ["deit_tiny_distilled_patch16_224", "deit_tiny_patch16_224"]
SIZES: dict[str, Any] = {"depth": 2, "num_classes": 7}


def pair_up(name: str) -> tuple[Student, Any]:
    """Return our student and timm's, with the same weights, in evaluation mode."""
    torch.manual_seed(0)
    theirs = timm.create_model(name, img_size=64, **SIZES).eval()
    ours = build_student(name, image_size=64, qkv_bias=True, drop_path=0.0, **SIZES).eval()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def draw_images(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", NAMES)
def test_features_and_head_are_those_of_timm(name: str) -> None:
    ours, theirs = pair_up(name)
    images = draw_images()
    with torch.no_grad():
        features = ours.forward_features(images)
        expected = theirs.forward_features(images)
        assert features.shape == (2, 16 + ours.num_prefix_tokens, 192)
        torch.testing.assert_close(features, expected, rtol=0, atol=1e-5)
        for pre_logits in (False, True):
            torch.testing.assert_close(
                ours.forward_head(features, pre_logits=pre_logits),
                theirs.forward_head(expected, pre_logits=pre_logits),
                rtol=0,
                atol=1e-5,
            )
        # the fast path skips tokens that no head reads
        torch.testing.assert_close(ours(images), ours.forward_head(features), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_classes", [3, 0])
def test_the_classifier_is_reset_as_in_timm(name: str, num_classes: int) -> None:
    ours, theirs = pair_up(name)
    for model in (ours, theirs):
        model.reset_classifier(num_classes)
    assert ours.num_classes == ours.pretrained_cfg["num_classes"] == num_classes
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    if num_classes:
        fresh = build_student(name, num_classes=num_classes, depth=2)
        assert torch.equal(ours.head.weight, fresh.head.weight)  # type: ignore[arg-type]
        theirs.load_state_dict(ours.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(ours(draw_images()), theirs(draw_images()), rtol=0, atol=1e-5)
    assert len(list(ours.head.parameters())) == (2 if num_classes else 0)
    with pytest.raises(ValueError, match="global_pool must be token"):
        ours.reset_classifier(3, "avg")


def test_attributes_are_those_of_timm() -> None:
    for name in NAMES:
        ours, theirs = pair_up(name)
        for attribute in ("num_classes", "num_features", "embed_dim", "num_prefix_tokens"):
            assert getattr(ours, attribute) == getattr(theirs, attribute)
        assert ours.head_hidden_size == theirs.head_hidden_size
        for key in ("classifier", "first_conv", "mean", "std"):
            assert ours.pretrained_cfg[key] == theirs.pretrained_cfg[key]
        assert resolve_model_data_config(ours)["input_size"] == (3, 64, 64)
        assert type(ours.get_classifier()) is type(theirs.get_classifier())
        ours.set_input_size(96)
        assert resolve_model_data_config(ours)["input_size"] == (3, 96, 96)


@pytest.mark.parametrize("drop_path", [0.0, 0.4])
def test_checkpointed_blocks_give_the_same_gradients(drop_path: float) -> None:
    student = build_student(NAMES[0], image_size=64, drop_path=drop_path, **SIZES).train()
    gradients = []
    for enable in (False, True):
        student.set_grad_checkpointing(enable)
        student.zero_grad()
        torch.manual_seed(5)
        cls_logits, dist_logits = student(draw_images())
        (cls_logits.square().sum() + dist_logits.sum()).backward()
        gradients.append([parameter.grad for parameter in student.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)


def test_checkpointed_blocks_store_less() -> None:
    student = build_student(NAMES[0], image_size=64, drop_path=0.0, **SIZES).train()
    stored = []
    for enable in (False, True):
        student.set_grad_checkpointing(enable)
        sizes: list[int] = []

        def pack(tensor: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            student(draw_images())
        stored.append(sum(sizes))
    assert stored[1] < stored[0] / 2


def test_training_can_give_the_mean_of_the_heads() -> None:
    ours, theirs = pair_up(NAMES[0])
    for enable in (True, False):
        outputs = []
        for model in (ours.train(), theirs.train()):
            model.set_distilled_training(enable)
            outputs.append(model(draw_images()))
        assert isinstance(outputs[0], tuple) == enable
        torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"indices": 1, "norm": True, "output_fmt": "NLC", "return_prefix_tokens": True},
        {"indices": [0, -1], "intermediates_only": True, "return_prefix_tokens": True},
    ],
    ids=["all", "last", "chosen"],
)
@torch.no_grad()
def test_intermediates_are_those_of_timm(name: str, arguments: dict[str, Any]) -> None:
    ours, theirs = pair_up(name)
    found = ours.forward_intermediates(draw_images(), **arguments)
    expected = theirs.forward_intermediates(draw_images(), **arguments)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_intermediates_of_patches_are_those_of_images() -> None:
    ours, _ = pair_up(NAMES[0])
    images = draw_images()
    patches = images.unfold(2, 16, 16).unfold(3, 16, 16).permute(0, 2, 3, 1, 4, 5).flatten(3)
    cut = ours.forward_intermediates(patches.flatten(1, 2))
    torch.testing.assert_close(cut, ours.forward_intermediates(images), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="output_fmt must be NCHW or NLC"):
        ours.forward_intermediates(images, output_fmt="NHWC")
