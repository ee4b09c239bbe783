"""Exact counts of accuracy: without padding, at any batch size, and agreement with the teacher."""

from dataclasses import dataclass

import numpy as np
import pytest
import timm
import torch
from torch import nn

from fastdeit.distributed.world import init_distributed
from fastdeit.models.student import build_student
from fastdeit.training.evaluation import ClassRecorder, evaluate, student_heads


@dataclass
class Rows:
    images: torch.Tensor
    labels: torch.Tensor
    image_index: torch.Tensor | None = None


@pytest.fixture(scope="module", autouse=True)
def world() -> None:
    init_distributed()


def batches(images: torch.Tensor, labels: torch.Tensor, size: int) -> list[Rows]:
    """Cut into batches of `size`, the last padded with rows that would be hits if they counted."""
    fill = -len(labels) % size
    images = torch.cat((images, images[:1].expand(fill, *images.shape[1:])))
    labels = torch.cat((labels, torch.full((fill,), -1)))
    return [Rows(*part) for part in zip(images.split(size), labels.split(size), strict=True)]


@pytest.mark.parametrize("size", [1, 4, 7, 64])
def test_accuracies_equal_a_plain_count(size: int) -> None:
    torch.manual_seed(3)
    logits = torch.randn(45, 9)
    labels = torch.randint(0, 9, (45,))
    teacher = torch.randn(45, 9)
    teacher[0] = logits[0]  # of which the padding has copies
    # the "models" read their logits from the images
    images = torch.cat((logits, teacher), 1)
    models = {
        "model": lambda x: {"both": x[:, :9], "cls": -x[:, :9]},
        "teacher": lambda x: {"both": x[:, 9:]},
    }
    found = evaluate(models, batches(images, labels, size), torch.float32)
    order = logits.argsort(1, descending=True)
    expected = {
        "model/both/top1": (order[:, 0] == labels).float().mean(),
        "model/both/top5": (order[:, :5] == labels[:, None]).any(1).float().mean(),
        "model/cls/top1": (order[:, -1] == labels).float().mean(),
        "model/both/agreement": (order[:, 0] == teacher.argmax(1)).float().mean(),
        "teacher/both/top1": (teacher.argmax(1) == labels).float().mean(),
    }
    for name, share in expected.items():
        assert found[name] == pytest.approx(100 * share.item(), abs=1e-4), name
    assert "teacher/both/agreement" not in found


def test_recorder_has_the_class_of_each_image_without_padding() -> None:
    logits = torch.randn(45, 9)
    labels = torch.randint(0, 9, (45,))
    recorder = ClassRecorder()
    parts = batches(logits, labels, 7)
    for number, part in enumerate(reversed(parts)):
        first = 7 * (len(parts) - 1 - number)
        part.image_index = torch.arange(first, first + 7)
    model = {"model": lambda x: {"both": x, "cls": -x}}
    found = evaluate(model, parts[::-1], torch.float32, recorder.add)
    table = recorder.gather()
    assert list(table) == ["row", "label", "model/both", "model/cls"]
    assert all(column.dtype == np.int32 for column in table.values())
    assert table["row"].tolist() == list(range(45)) and table["label"].tolist() == labels.tolist()
    assert table["model/both"].tolist() == logits.argmax(1).tolist()
    hits = table["model/cls"] == table["label"]
    assert found["model/cls/top1"] == pytest.approx(100 * hits.mean())


def test_top5_of_three_classes_is_100_percent() -> None:
    found = evaluate(
        {"model": lambda x: {"both": x}},
        batches(torch.randn(10, 3), torch.zeros(10, dtype=torch.long), 5),
        torch.float32,
    )
    assert found["model/both/top5"] == 100


def test_both_heads_are_the_mean_of_the_logits() -> None:
    name = "deit_tiny_distilled_patch16_224"
    sizes = {"image_size": 32, "embed_dim": 24, "depth": 1, "num_heads": 2}
    student = build_student(name, num_classes=5, **sizes).eval()
    images = torch.randn(2, 3, 32, 32)
    heads = student_heads(student)(images)
    torch.testing.assert_close(heads["both"], (heads["cls"] + heads["dist"]) / 2)
    torch.testing.assert_close(heads["both"], student(images))
    plain = build_student(name.replace("_distilled", ""), num_classes=5, **sizes).eval()
    assert set(student_heads(plain)(images)) == {"both"}
    assert set(student_heads(torch.nn.Flatten())(images)) == {"both"}


DISTILLED = [
    "deit_tiny_distilled_patch16_224",
    "efficientformer_l1",
    "efficientformerv2_s0",
    "efficientvim_m1_dist",
    "iformer_l2_distilled",
    "levit_128s",
    "pit_ti_distilled_224",
    "swiftformer_xs",
]


@pytest.mark.parametrize("name", DISTILLED)
def test_heads_of_timms_models_are_evaluated_apart(name: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5).eval()
    for parameter in model.parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.1)
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        heads = student_heads(model)(images)
        assert heads.keys() == {"cls", "dist", "both"} and not model.training
        assert not torch.allclose(heads["cls"], heads["dist"])
        torch.testing.assert_close(heads["both"], model(images))
        assert not any(module.training for module in model.modules())
    model.train()
    assert isinstance(model(images.repeat(2, 1, 1, 1)), torch.Tensor)  # still joined


@pytest.mark.parametrize("name", ["pit_ti_224", "test_resnet"])
def test_model_with_one_head_has_one_result(name: str) -> None:
    model = timm.create_model(name, num_classes=5).eval()
    assert student_heads(model)(torch.randn(1, 3, 224, 224)).keys() == {"both"}
