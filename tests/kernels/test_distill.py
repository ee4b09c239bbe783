"""`distill` against the loss of 2012.12877 (equations 2 and 3), written out class by class in float64."""

import math
from typing import Any

import pytest
import torch

from fastdeit.kernels.distill import distill, mixed_cross_entropy

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BATCH, CLASSES = 6, 11


def softmax(logits: list[float], tau: float = 1.0) -> list[float]:
    top = max(logits)
    powers = [math.exp((value - top) / tau) for value in logits]
    return [power / sum(powers) for power in powers]


def mixed_target(labels: list[int], lam: list[float], row: int, classes: int, smoothing: float) -> list[float]:
    off, on = smoothing / classes, 1 - smoothing + smoothing / classes
    own = [on if k == labels[row] else off for k in range(classes)]
    other = [on if k == labels[row ^ 1] else off for k in range(classes)]
    return [lam[row] * a + (1 - lam[row]) * b for a, b in zip(own, other, strict=True)]


def base_by_hand(logits: torch.Tensor, labels: torch.Tensor, lam: torch.Tensor, smoothing: float) -> float:
    total = 0.0
    for row, values in enumerate(logits.double().tolist()):
        target = mixed_target(labels.tolist(), lam.double().tolist(), row, len(values), smoothing)
        total -= sum(t * math.log(p) for t, p in zip(target, softmax(values), strict=True))
    return total / len(logits)


def distilled_by_hand(logits: torch.Tensor, teacher: torch.Tensor, kind: str, tau: float, legacy: bool) -> float:
    total = 0.0
    for student_row, teacher_row in zip(logits.double().tolist(), teacher.double().tolist(), strict=True):
        if kind == "hard":
            total -= math.log(softmax(student_row)[teacher_row.index(max(teacher_row))])
        else:
            pairs = zip(softmax(teacher_row, tau), softmax(student_row, tau), strict=True)
            total += tau**2 * sum(p * math.log(p / q) for p, q in pairs)
    return total / len(logits) / (logits.shape[1] if legacy and kind == "soft" else 1)


def make_inputs(classes: int = CLASSES, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    drawn = torch.Generator().manual_seed(classes)
    cls_logits, dist_logits, teacher = 3 * torch.randn(3, BATCH, classes, generator=drawn)
    labels = torch.randint(classes, (BATCH,), generator=drawn)
    labels[3] = labels[2]  # a pair of one class
    lam = torch.tensor([0.3, 0.3, 0.6, 0.6, 0.0, 1.0])
    tensors = {"cls_logits": cls_logits.to(dtype), "dist_logits": dist_logits.to(dtype), "labels": labels, "lam": lam}
    return {name: tensor.to(DEVICE) for name, tensor in {**tensors, "teacher": teacher}.items()}


@pytest.mark.parametrize("legacy", [False, True], ids=["batchmean", "legacy"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("kind", ["hard", "soft"])
@pytest.mark.parametrize("classes", [2, CLASSES, 257])
def test_distill_equals_the_formula(classes: int, kind: str, smoothing: float, legacy: bool) -> None:
    inputs = make_inputs(classes)
    parts = distill(**inputs, smoothing=smoothing, kind=kind, alpha=0.3, tau=3.0, legacy=legacy)
    base = base_by_hand(inputs["cls_logits"], inputs["labels"], inputs["lam"], smoothing)
    distilled = distilled_by_hand(inputs["dist_logits"], inputs["teacher"], kind, 3.0, legacy)
    assert parts.base.item() == pytest.approx(base, rel=1e-5)
    assert parts.distill.item() == pytest.approx(distilled, rel=1e-5)
    assert parts.loss.item() == pytest.approx(0.7 * base + 0.3 * distilled, rel=1e-5)
    assert parts.loss.dtype == torch.float32 and parts.loss.ndim == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_distill_computes_in_fp32(dtype: torch.dtype) -> None:
    half = make_inputs(dtype=dtype)
    wide = {name: tensor.float() if "logits" in name else tensor for name, tensor in half.items()}
    for kind in ("hard", "soft"):
        setting: dict[str, Any] = {"smoothing": 0.1, "kind": kind, "alpha": 0.5, "tau": 2.0}
        assert torch.equal(distill(**half, **setting).loss, distill(**wide, **setting).loss)


def test_hard_takes_logits_or_their_argmax() -> None:
    inputs = make_inputs()
    setting: dict[str, Any] = {"smoothing": 0.1, "kind": "hard", "alpha": 0.5, "tau": 1.0}
    expected = distill(**inputs, **setting)
    for dtype in (torch.int64, torch.int32, torch.uint16):
        inputs["teacher"] = make_inputs()["teacher"].argmax(-1).to(dtype)
        assert torch.equal(distill(**inputs, **setting).loss, expected.loss)


def test_none_takes_the_mean_of_both_heads() -> None:
    inputs: dict[str, Any] = {**make_inputs(), "teacher": None}
    parts = distill(**inputs, smoothing=0.1, kind="none", alpha=0.5, tau=1.0)
    logits = (inputs["cls_logits"] + inputs["dist_logits"]) / 2
    assert parts.loss.item() == pytest.approx(base_by_hand(logits, inputs["labels"], inputs["lam"], 0.1), rel=1e-5)
    assert torch.equal(parts.loss, parts.base) and parts.distill.item() == 0


def test_none_takes_one_head() -> None:
    inputs: dict[str, Any] = {**make_inputs(), "teacher": None, "dist_logits": None}
    parts = distill(**inputs, smoothing=0.0, kind="none", alpha=0.5, tau=1.0)
    expected = base_by_hand(inputs["cls_logits"], inputs["labels"], inputs["lam"], 0.0)
    assert parts.loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_distill_gradients_by_finite_differences(kind: str) -> None:
    inputs = make_inputs(5)
    heads = [inputs[name].requires_grad_() for name in ("cls_logits", "dist_logits")]
    setting: dict[str, Any] = {"smoothing": 0.1, "kind": kind, "alpha": 0.4, "tau": 2.0}
    gradients = torch.autograd.grad(distill(**inputs, **setting).loss, heads)
    labels, lam, teacher = inputs["labels"], inputs["lam"], inputs["teacher"]
    step = 1e-6
    for row, column in ((0, 0), (2, 3), (5, 4)):
        nudge = torch.zeros(BATCH, 5, dtype=torch.float64, device=DEVICE)
        nudge[row, column] = step
        cls_up, cls_down = (heads[0].detach().double() + sign * nudge for sign in (1, -1))
        dist_up, dist_down = (heads[1].detach().double() + sign * nudge for sign in (1, -1))
        base = base_by_hand(cls_up, labels, lam, 0.1) - base_by_hand(cls_down, labels, lam, 0.1)
        distilled = distilled_by_hand(dist_up, teacher, kind, 2.0, False)
        distilled -= distilled_by_hand(dist_down, teacher, kind, 2.0, False)
        assert gradients[0][row, column].item() == pytest.approx(0.6 * base / (2 * step), abs=1e-6)
        assert gradients[1][row, column].item() == pytest.approx(0.4 * distilled / (2 * step), abs=1e-6)


def test_none_gives_both_heads_a_gradient() -> None:
    inputs: dict[str, Any] = {**make_inputs(), "teacher": None}
    heads = [inputs[name].requires_grad_() for name in ("cls_logits", "dist_logits")]
    loss = distill(**inputs, smoothing=0.1, kind="none", alpha=0.5, tau=1.0).loss
    first, second = torch.autograd.grad(loss, heads)
    assert first.abs().min() > 0 and torch.equal(first, second)


def test_distill_survives_extreme_logits() -> None:
    inputs = make_inputs()
    for name in ("cls_logits", "dist_logits", "teacher"):
        inputs[name] = 1e4 * inputs[name].sign()
    heads = [inputs[name].requires_grad_() for name in ("cls_logits", "dist_logits")]
    for kind in ("hard", "soft"):
        loss = distill(**inputs, smoothing=0.1, kind=kind, alpha=0.5, tau=1.0).loss
        assert loss.isfinite() and all(g.isfinite().all() for g in torch.autograd.grad(loss, heads))


def test_mixed_cross_entropy_without_mixing_is_torchs() -> None:
    inputs = make_inputs()
    logits, labels = inputs["cls_logits"], inputs["labels"]
    expected = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)
    torch.testing.assert_close(mixed_cross_entropy(logits, labels, torch.ones_like(inputs["lam"]), 0.1), expected)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({}, "firm", "choose from"),
        ({}, "none", "no teacher"),
        ({"teacher": None}, "hard", "teacher's output"),
        ({"dist_logits": None}, "soft", "two heads"),
        ({"teacher": torch.zeros(BATCH, dtype=torch.int64)}, "soft", "needs logits"),
        ({"cls_logits": torch.zeros(3, CLASSES)}, "hard", "whole pairs"),
    ],
)
def test_distill_refuses(change: dict[str, Any], kind: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        distill(**{**make_inputs(), **change}, smoothing=0.1, kind=kind, alpha=0.5, tau=1.0)
