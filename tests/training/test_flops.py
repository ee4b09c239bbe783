"""Model FLOPs of students and timm models, and the peaks of GPUs."""

from typing import Any

import pytest
import timm
import torch

from fastdeit.models.finetune.trainable import freeze_weights
from fastdeit.models.student import build_student
from fastdeit.models.weights import HEADS
from fastdeit.training import flops
from fastdeit.training.flops import Utilisation, count_flops, find_peak

WIDTHS = {"tiny": (2.52, 7.51), "small": (9.25, 27.63), "base": (35.31, 105.7)}
"""GFLOP of the forward pass and of training on an image of 224 px, counted by hand."""
SIZES = {"embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 5, "image_size": 32}


@pytest.mark.parametrize("width", WIDTHS)
def test_a_student_has_the_known_counts(width: str) -> None:
    with torch.device("meta"), pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastdeit.models.student.initialise_student", lambda *_: None)
        student = build_student(f"deit_{width}_distilled_patch16_224", num_classes=1000)
    forward, training = WIDTHS[width]
    assert count_flops(student, 224) == pytest.approx(training * 1e9, rel=1e-3)
    student.requires_grad_(False)
    assert count_flops(student, 224) == pytest.approx(forward * 1e9, rel=1e-3)


@pytest.mark.parametrize("trainable", ["all", "attention", "heads"])
def test_the_count_is_that_of_torchs_operators(
    trainable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On timm's DeiT, which computes every token in every block as the count has it."""
    student = build_student("deit_tiny_patch16_224", patch_size=8, **SIZES)
    theirs = timm.create_model(
        "deit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2,
        num_classes=5, qkv_bias=False,
    )  # fmt: skip
    for model in (student, theirs):
        freeze_weights(model, trainable, HEADS)
    expected = count_flops(theirs, 32)
    assert expected and count_flops(student, 32) == pytest.approx(expected, rel=1e-6)


def test_parts_of_a_student_count() -> None:
    sizes: dict[str, Any] = SIZES | {"patch_size": 8}
    plain = count_flops(build_student("deit_tiny_patch16_224", **sizes), 32)
    more: list[dict[str, Any]] = [
        {"distilled": True},
        {"reg_tokens": 3},
        {"mlp_ratio": 8.0},
        {"image_size": 64},
    ]
    for change in more:
        student = build_student("deit_tiny_patch16_224", **{**sizes, **change})
        found = count_flops(student, 32)
        assert found and plain and found > plain, change


def test_a_convnet_is_counted_and_left_as_it_was() -> None:
    model = timm.create_model("test_resnet", num_classes=5).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = count_flops(model, 32)
    assert found and found > 1e6 and not model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_what_cannot_be_counted_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> float:
        raise NotImplementedError("no kernel for the meta device")

    monkeypatch.setattr(flops, "_count_on_meta", refuse)
    assert count_flops(torch.nn.Linear(2, 2), 32) is None
    assert Utilisation(None, 1, 989.0).rate(1000) == {}


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA L40S", 362),
        ("NVIDIA RTX 6000 Ada Generation", 364),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA A1000", None),
        ("", None),
    ],
)
def test_a_gpu_has_the_peak_of_its_name(name: str, peak: float | None) -> None:
    assert find_peak(name) == peak


def test_the_rate_of_a_device_is_its_share() -> None:
    assert Utilisation(27.63e9, 8, 989.0).rate(8 * 11_900) == {
        "tflops": pytest.approx(328.8, rel=1e-3),
        "mfu": pytest.approx(0.3325, rel=1e-3),
    }
    assert Utilisation(1e12, 2, None).rate(4) == {"tflops": 2.0}
