"""Traces of batches: means over all images, and what is absent where a model lacks it."""

import math
from typing import Any

import pytest
import timm
import torch

from fastdeit.analysis.trace import Trace, find_lack, summarise_traces, trace_images
from fastdeit.models.student import Student

SIZES: dict[str, Any] = {"embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 5}


def make_student(distilled: bool = True) -> Student:
    return Student(image_size=24, patch_size=8, distilled=distilled, **SIZES).eval()


def draw_images() -> torch.Tensor:
    return torch.randn(5, 3, 24, 24, generator=torch.Generator().manual_seed(1))


def test_batches_of_any_size_have_the_means_of_all_images() -> None:
    model = make_student()
    images = draw_images()
    whole = summarise_traces(model, [trace_images(model, images)], 24)
    parts = [trace_images(model, part) for part in images.split([3, 2])]
    split = summarise_traces(model, parts, 24)
    assert whole.tokens and split.tokens and whole.distance and split.distance
    for one, other in zip(whole.tokens.layers, split.tokens.layers, strict=True):
        assert (one.mean, one.std) == pytest.approx((other.mean, other.std), abs=1e-6)
    for mine, theirs in zip(whole.distance.layers, split.distance.layers, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)
    apart = [math.dist(divmod(i, 3), divmod(j, 3)) for i in range(9) for j in range(9)]
    assert whole.distance.uniform == pytest.approx(8 * sum(apart) / 81)
    assert whole.notes == ()


def test_a_model_shows_what_it_has() -> None:
    alone = make_student(distilled=False)
    found = summarise_traces(alone, [trace_images(alone, draw_images())], 24)
    assert found.tokens is None and found.distance is not None
    assert found.notes == ("the model has no distillation token to compare",)
    net = timm.create_model("test_resnet", num_classes=5).eval()
    trace: Trace = trace_images(net, draw_images())
    assert trace == Trace(None, None, None) and "self-attention" in find_lack(net)
    assert len(summarise_traces(net, [trace], 24).notes) == 2


@pytest.mark.gpu
def test_a_gpu_sees_the_same() -> None:
    model = make_student()
    images = draw_images()
    expected = trace_images(model, images)
    found = trace_images(model.cuda(), images.cuda())
    for one, other in zip(found[:2], expected[:2], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-2)
    assert summarise_traces(model, [found], 24).notes == ()
