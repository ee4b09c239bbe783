"""The check of an export: what it counts, and what it allows."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fastdeit.export import check
from fastdeit.export.check import check_difference, measure_difference
from tests.support.trained import VIEW

LOADED: Any = SimpleNamespace(view=VIEW._replace(size=8))


def compute(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits of two heads whose most probable classes are the same for no image."""
    means = images.mean((2, 3))
    return means, -means


@pytest.fixture(autouse=True)
def model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "build_network", lambda *_: compute)


def test_an_image_has_the_same_class_only_if_each_head_has() -> None:
    same = measure_difference(compute, LOADED, "both", "fp32")
    assert (same.same_class, same.images, same.largest) == (8, 8, 0.0) and same.is_allowed
    one_head = measure_difference(lambda images: compute(images)[:1] * 2, LOADED, "both", "fp32")
    assert (one_head.same_class, one_head.images) == (0, 8)


@pytest.mark.parametrize(("scale", "allowed"), [(1.0, 1e-4), (100.0, 1e-3)])
def test_what_is_allowed_grows_with_the_logits_above_ten(scale: float, allowed: float) -> None:
    limit = measure_difference(compute, LOADED, "both", "fp32").logit

    def larger(images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(head * scale / limit for head in compute(images))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(check, "build_network", lambda *_: larger)
        found = measure_difference(larger, LOADED, "both", "fp32")
    assert found.tolerance == pytest.approx(allowed)


def test_a_logit_that_is_no_number_is_refused() -> None:
    def broken(images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(head * torch.nan for head in compute(images))

    found = measure_difference(broken, LOADED, "both", "fp32")
    with pytest.raises(ValueError, match="differ from the model's by nan"):
        check_difference(found, "fp32")
