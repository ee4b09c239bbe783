"""`--trainable`: which weights of which models train."""

from typing import Any

import pytest
import timm
import torch
from torch import nn

from fastdeit.config.schema import Config
from fastdeit.models.build import build_model, list_heads
from fastdeit.models.finetune.trainable import count_parameters, freeze_weights, list_frozen_norms
from fastdeit.models.student import build_student
from tests.support.tiny_student import SIZE

HEAD = {"head.weight", "head.bias"}
HEADS = HEAD | {"head_dist.weight", "head_dist.bias"}


def freeze(model: nn.Module, trainable: str) -> set[str]:
    """Freeze a model; return the names of the weights that train."""
    freeze_weights(model, trainable, list_heads(model))
    return {name for name, weight in model.named_parameters() if weight.requires_grad}


def deits_choice(model: nn.Module) -> set[str]:
    """Return what --attn-only of deit's main.py trains of a model with one head."""
    names = {name for name, _ in model.named_parameters()}
    return {name for name in names if ".attn." in name} | HEAD | {"pos_embed"}


def test_attention_is_deits_attn_only_and_both_heads() -> None:
    plain = build_student("deit_tiny_patch16_224", num_classes=3, depth=2, qkv_bias=True)
    assert freeze(plain, "attention") == deits_choice(plain)
    distilled = build_student("deit_tiny_distilled_patch16_224", num_classes=3, depth=2)
    assert freeze(distilled, "attention") == deits_choice(distilled) | HEADS


@pytest.mark.parametrize("trainable", ["all", "attention", "heads"])
def test_timms_model_has_the_choice_of_ours(trainable: str) -> None:
    name = "deit_tiny_distilled_patch16_224"
    ours = build_student(name, num_classes=3, depth=2, qkv_bias=True)
    assert freeze(timm.create_model(name, num_classes=3, depth=2), trainable) == freeze(
        ours, trainable
    )


def test_a_convnet_trains_its_head_alone_and_has_no_attention() -> None:
    model = timm.create_model("test_resnet", num_classes=3)
    assert list_frozen_norms(model) == []
    with pytest.raises(
        ValueError, match=r"--trainable must be all or heads .* \(got 'attention'\)"
    ):
        freeze(model, "attention")
    assert freeze(model, "heads") == {"fc.weight", "fc.bias"}
    norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert norms and list_frozen_norms(model) == norms
    model.fc.weight.requires_grad_(False)
    assert count_parameters(model)[1] == 3


def test_a_frozen_backbone_has_no_drop_path() -> None:
    config = Config().replace(
        data={"input_size": SIZE},
        model={"patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2, "drop_path": 0.2},
    )
    plain: Any = build_model(config, ("a", "b"))[0]
    assert max(plain.drop_path_rates) == 0.2
    frozen = config.replace(model={"trainable": "heads"}, checkpoint={"resume": "RUN"})
    model: Any = build_model(frozen, ("a", "b"))[0]
    assert max(model.drop_path_rates) == 0 and count_parameters(model)[1] == 2 * (24 * 2 + 2)
    outputs = model.train()(torch.zeros(2, 3, SIZE, SIZE))
    assert all(logits.requires_grad for logits in outputs)


def test_frozen_weights_without_a_start_are_refused() -> None:
    with pytest.raises(ValueError, match="--trainable must be all without --finetune"):
        Config().replace(model={"trainable": "heads"})


def test_norms_of_which_nothing_trains_are_frozen_and_those_without_weights_too() -> None:
    plain, partial = nn.BatchNorm2d(3, affine=False), nn.BatchNorm2d(3)
    frozen, whole = nn.BatchNorm2d(3).requires_grad_(False), nn.BatchNorm2d(3)
    partial.bias.requires_grad_(False)
    model = nn.Sequential(plain, partial, frozen, whole)
    assert list_frozen_norms(model) == [plain, frozen]
