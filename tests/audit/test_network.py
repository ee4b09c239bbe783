"""The findings on networks: of timm's families, and with a planted order of norms or heads."""

from typing import Any

import pytest
import timm
import torch
from timm.models.vision_transformer import ResPostBlock, VisionTransformer
from torch import nn

from fastdeit.audit.findings import Finding
from fastdeit.audit.network import judge_drop_path, read_network
from fastdeit.audit.teacher import find_family, read_teachers
from fastdeit.kernels.norm import norm
from fastdeit.models.blocks import NORM_EPS
from fastdeit.models.student import Student

SIZES: dict[str, Any] = {"embed_dim": 24, "depth": 2, "num_heads": 2}
HEADS = ("head", "head_dist")


def make_student(kind: type[Student] = Student) -> Student:
    return kind(**SIZES, image_size=32, patch_size=8, num_classes=5)


class PostNorm(Student):
    """A student whose attention reads tokens that are not normalised."""

    def _run_block(
        self,
        number: int,
        x: torch.Tensor,
        y: torch.Tensor,
        scales: torch.Tensor | None,
        num_out: int | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return super()._run_block(number, x, x, scales, num_out)


class FirstNormOnly(Student):
    """A student whose MLP reads the sum of both branches."""

    def _run_block(
        self,
        number: int,
        x: torch.Tensor,
        y: torch.Tensor,
        scales: torch.Tensor | None,
        num_out: int | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        block: Any = self.blocks[number]
        x = x + block.attn(y)
        x = x + block.mlp(x)
        following = self._norm_before(number + 1)
        return x, norm(x, following.weight, following.bias, NORM_EPS)


class Fusion(Student):
    """A student that adds the probabilities of both heads, as in the paper's text."""

    def _join(self, outputs: tuple[torch.Tensor, ...]) -> Any:
        return sum(output.softmax(-1) for output in outputs)


def find(network: nn.Module, name: str = "planted", *, trained: bool = False) -> dict[str, Finding]:
    return read_network(network, name, HEADS, trained=trained)


def test_a_student_has_the_order_and_the_heads_of_the_paper() -> None:
    found = find(make_student())
    assert found["pre_norm"] == Finding("pre-norm, LayerNorm, in 4 of 4 layers", True)
    assert found["heads_at_inference"] == Finding("(cls + dist) / 2 of the logits", True)
    assert found["positions"] == Finding("18 = 16 + 2, learned", True)


@pytest.mark.parametrize(("kind", "count"), [(PostNorm, 2), (FirstNormOnly, 2)])
def test_another_order_of_norms_is_measured(kind: type[Student], count: int) -> None:
    found = find(make_student(kind))
    assert found["pre_norm"] == Finding(f"pre-norm, LayerNorm, in {count} of 4 layers", False)


def test_timms_blocks_with_norms_after_the_branches_differ() -> None:
    network = VisionTransformer(
        **SIZES, img_size=32, patch_size=8, num_classes=5, block_fn=ResPostBlock
    )
    assert find(network)["pre_norm"].is_equal is False


def test_another_combination_of_heads_is_measured() -> None:
    found = find(make_student(Fusion))
    assert found["heads_at_inference"] == Finding("another function of both heads", False)


def test_positions_that_do_not_train_differ() -> None:
    student = make_student()
    student.pos_embed.requires_grad_(False)
    assert find(student)["positions"] == Finding("18 = 16 + 2, fixed", False)


def test_a_trained_bias_of_zeros_is_none_and_of_one_block_is_one() -> None:
    student = Student(**SIZES, image_size=32, patch_size=8, qkv_bias=True)
    assert find(student)["qkv_bias"] == Finding("in 2 of 2 blocks", False)
    assert find(student, trained=True)["qkv_bias"].is_equal is True
    bias = student.get_parameter("blocks.1.attn.qkv.bias")
    with torch.no_grad():
        bias[3] = 1.0
    assert find(student, trained=True)["qkv_bias"] == Finding("in 2 of 2 blocks", False)


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("deit_tiny_distilled_patch16_224", {}, {"qkv_bias"}),
        (
            "deit3_small_patch16_224",
            {"embed_dim": 48, "depth": 2, "num_heads": 3},
            {
                *("distillation_token", "positions", "qkv_bias", "layer_scale"),
                *("heads_at_inference", "size"),
            },
        ),
        (
            "vit_tiny_patch16_224",
            {"depth": 2},
            {"distillation_token", "positions", "qkv_bias", "heads_at_inference", "size"},
        ),
        (
            "beit_base_patch16_224",
            {"embed_dim": 48, "depth": 2, "num_heads": 3},
            {
                *("distillation_token", "positions", "qkv_bias", "layer_scale"),
                *("heads_at_inference", "size"),
            },
        ),
    ],
    ids=["deit", "deit3", "vit", "beit"],
)
def test_timms_transformers_differ_where_they_do(
    name: str, arguments: dict[str, Any], expected: set[str]
) -> None:
    network = timm.create_model(name, drop_path_rate=0.1, **arguments)
    found = find(network, name)
    assert {item for item, finding in found.items() if finding.is_equal is False} == expected
    assert all(finding.is_equal is not None for finding in found.values())


def test_another_norm_differs() -> None:
    arguments: dict[str, Any] = {"img_size": 32, "patch_size": 8, "num_classes": 5}
    found = find(VisionTransformer(**SIZES, **arguments, norm_layer="rmsnorm"))
    assert found["pre_norm"] == Finding("pre-norm, LayerNorm, in 0 of 4 layers", False)


def test_dropout_and_a_norm_before_the_blocks_are_found() -> None:
    arguments: dict[str, Any] = {"img_size": 32, "patch_size": 8, "num_classes": 5}
    network = VisionTransformer(**SIZES, **arguments, pre_norm=True, proj_drop_rate=0.1)
    found = find(network)
    assert found["pre_norm"] == Finding("a norm before the first block", False)
    assert found["dropout"] == Finding("up to 0.1", False)


def test_a_network_of_another_kind_has_nothing_of_it() -> None:
    found = find(timm.create_model("test_resnet"), "test_resnet")
    assert found["pre_norm"] == Finding("test_resnet is no Vision Transformer", False)
    assert found["heads_at_inference"].is_equal is False


@pytest.mark.parametrize(
    ("rates", "text", "is_equal"),
    [
        ([0.0, 0.05, 0.1], "0 to 0.1, linearly", True),
        ([0.0, 0.02, 0.1], "0 to 0.1, not linearly", False),
        ([0.01, 0.055, 0.1], "0.01 to 0.1, linearly", False),
        ([0.1, 0.1, 0.1], "0.1 in every block", False),
        ([0.0, 0.1, 0.0], "up to 0.1", False),
        ([0.0], "none", False),
        ([], "none", False),
    ],
    ids=str,
)
def test_rates_of_drop_path(rates: list[float], text: str, is_equal: bool) -> None:
    assert judge_drop_path(rates) == Finding(text, is_equal)


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("test_resnet", "ConvNet"),
        ("test_vit", "transformer"),
        ("test_efficientnet", "ConvNet"),
        ("test_mambaout", "ConvNet"),
        ("mixer_s32_224", "other"),
        ("levit_128s", "hybrid"),
        ("deit_tiny_distilled_patch16_224", "transformer"),
        ("regnety_160.deit_in1k", "ConvNet"),
        ("torchscript", ""),
        ("module:teacher", ""),
    ],
)
def test_the_family_of_a_teacher(name: str, family: str) -> None:
    assert find_family(name) == family


def test_one_teacher_that_is_no_convnet_decides_and_one_not_known_leaves_it_open() -> None:
    assert read_teachers(["test_resnet", "test_vit"]).is_equal is False
    assert read_teachers(["test_resnet", "torchscript"]) == Finding(
        "test_resnet: ConvNet, torchscript: not known", None
    )
