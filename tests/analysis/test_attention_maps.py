"""Attention maps against a softmax and a rollout written out, for our student and timm's models."""

from typing import Any

import pytest
import timm
import torch
from torch import nn

from fastdeit.analysis.attention_maps import AttentionMaps, check_attention, record_attention
from fastdeit.models.student import Student

SIDE = 4  # patches a side


def make_model(kind: str) -> nn.Module:
    sizes: dict[str, Any] = {"embed_dim": 24, "depth": 3, "num_heads": 3, "num_classes": 5}
    if kind.startswith("student"):
        if "registers" in kind:
            sizes |= {"reg_tokens": 2, "init_values": 0.1, "no_embed_class": True}
        distilled = "one head" not in kind
        return Student(image_size=32, patch_size=8, distilled=distilled, **sizes).eval()
    arguments = {**sizes, "img_size": 32, "patch_size": 8}
    if kind == "registers":
        return timm.create_model("vit_tiny_patch16_224", reg_tokens=3, **arguments).eval()
    return timm.create_model(kind, **arguments).eval()


def make_images(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def written_out(model: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    """Return softmax(q·k / sqrt(D)) of each layer, (B, H, N, N), from the inputs of its qkv."""
    inputs: list[torch.Tensor] = []
    blocks: Any = model.blocks
    for block in blocks:
        block.attn.qkv.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    model(images)
    weights = []
    for block, x in zip(blocks, inputs, strict=True):
        packed = x @ block.attn.qkv.weight.T
        if block.attn.qkv.bias is not None:
            packed = packed + block.attn.qkv.bias
        q, k, _ = packed.chunk(3, -1)
        heads = []
        for q_head, k_head in zip(q.split(8, -1), k.split(8, -1), strict=True):
            heads.append((q_head @ k_head.mT / 8**0.5).softmax(-1))
        weights.append(torch.stack(heads, 1))
    return weights


KINDS = (
    "student",
    "student with one head",
    "student with registers",
    "deit_tiny_distilled_patch16_224",
    "registers",
)


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    model = make_model(request.param)
    drawn = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=drawn))
    return model


@torch.no_grad()
def record(model: nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, Any]:
    with record_attention(model) as recorded:
        model(images)
    return recorded.weights, recorded.rollout, recorded.maps()


@torch.no_grad()
def test_weights_are_the_softmax_of_queries_and_keys(model: nn.Module) -> None:
    weights, rollout, _ = record(model, make_images())
    wanted = written_out(model, make_images())
    torch.testing.assert_close(weights, wanted[-1], rtol=1e-5, atol=1e-6)
    for sums in (weights.sum(-1), rollout.sum(-1)):
        torch.testing.assert_close(sums, torch.ones_like(sums))


@torch.no_grad()
def test_rollout_follows_the_weights_of_all_layers(model: nn.Module) -> None:
    rollout = record(model, make_images())[1]
    for image in range(2):
        flow = torch.eye(rollout.shape[-1])
        for layer in written_out(model, make_images()):
            flow = (0.5 * layer[image].mean(0) + 0.5 * torch.eye(len(flow))) @ flow
        torch.testing.assert_close(rollout[image], flow, rtol=1e-5, atol=1e-6)


def test_maps_are_what_special_tokens_read_of_patches(model: nn.Module) -> None:
    weights, rollout, maps = record(model, make_images())
    patches = slice(-(SIDE**2), None)
    assert maps.tokens == (("CLS", "DIST") if hasattr(model, "dist_token") else ("CLS",))
    assert maps.heads.shape == (2, len(maps.tokens), 3, SIDE, SIDE)
    for number in range(len(maps.tokens)):
        of_token = maps.heads[:, number].flatten(-2)
        assert torch.equal(of_token, weights[:, :, number, patches])
        assert torch.equal(maps.rollout[:, number].flatten(-2), rollout[:, number, patches])
    one: AttentionMaps = maps.of_image(1)
    assert torch.equal(one.heads[0], maps.heads[1]) and len(one.rollout) == 1


@torch.no_grad()
def test_recording_changes_no_logits_and_ends_with_the_block(model: nn.Module) -> None:
    images = make_images()
    with record_attention(model) as recorded:
        during = model(images)
    before = recorded.weights
    assert torch.equal(during, model(images))
    model(make_images(1))
    assert recorded.weights is before


def test_a_second_pass_replaces_the_first(model: nn.Module) -> None:
    images = make_images()
    with torch.no_grad(), record_attention(model) as recorded:
        model(images)
        model(images.flip(0))
    again = record(model, images)[1]
    torch.testing.assert_close(recorded.rollout, again.flip(0))


@pytest.mark.parametrize(
    ("name", "arguments", "reason"),
    [
        ("test_resnet", {}, "plain self-attention"),
        ("vit_tiny_patch16_224", {"qk_norm": True}, "plain self-attention"),
        ("vit_tiny_patch16_224", {"depth": 0}, "plain self-attention"),
        ("vit_tiny_patch16_224", {"global_pool": "avg"}, "class token"),
        ("vit_tiny_patch16_224", {"global_pool": "avg", "class_token": False}, "class token"),
        ("beit_base_patch16_224", {"depth": 1, "embed_dim": 24, "num_heads": 3}, "self-attention"),
    ],
)
def test_other_models_are_refused(name: str, arguments: dict[str, Any], reason: str) -> None:
    model = timm.create_model(name, **arguments)
    with pytest.raises(ValueError, match=reason):
        check_attention(model)
