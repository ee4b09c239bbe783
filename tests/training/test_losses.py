"""`DistillationLoss`: the choice of a kernel form, the BCE form, and wrong arguments."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from fastdeit.kernels.distill import distill
from fastdeit.training.losses import CosubLoss, DistillationLoss, mixed_binary_cross_entropy

BATCH, CLASSES = 6, 7


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    drawn = torch.Generator().manual_seed(0)
    cls_logits, dist_logits, teacher = torch.randn(3, BATCH, CLASSES, generator=drawn)
    lam = torch.tensor([0.3, 0.7, 1.0, 0.0, 1.0, 1.0])
    labels = torch.tensor([2, 2, 0, 4, 1, 6])
    return {
        "cls": cls_logits,
        "dist": dist_logits,
        "teacher": teacher,
        "labels": labels,
        "lam": lam,
    }


def binary_target(labels: torch.Tensor, lam: torch.Tensor) -> torch.Tensor:
    """Return the dense mixed target, then binarised, as DeiT III's code does."""
    one_hot = F.one_hot(labels, CLASSES).double()
    partner = one_hot[[i ^ 1 for i in range(BATCH)]]
    return ((lam[:, None] * one_hot + (1 - lam[:, None]) * partner) > 0).double()


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_loss_equals_the_kernel(kind: str, batch: dict[str, torch.Tensor]) -> None:
    loss = DistillationLoss(kind=kind, alpha=0.2, tau=2.0, smoothing=0.05, legacy=True)
    parts = loss((batch["cls"], batch["dist"]), batch["labels"], batch["lam"], batch["teacher"])
    rows = [batch[name] for name in ("cls", "dist", "labels", "lam", "teacher")]
    expected = distill(*rows, smoothing=0.05, kind=kind, alpha=0.2, tau=2.0, legacy=True)
    assert all(torch.equal(a, b) for a, b in zip(parts, expected, strict=True))


def test_one_head_without_mixing_is_cross_entropy(batch: dict[str, torch.Tensor]) -> None:
    loss = DistillationLoss(kind="none", smoothing=0.1)
    parts = loss(batch["cls"], batch["labels"], torch.ones(BATCH))
    expected = F.cross_entropy(batch["cls"], batch["labels"], label_smoothing=0.1)
    torch.testing.assert_close(parts.loss, expected)


def test_bce_equals_torch_on_the_dense_target(batch: dict[str, torch.Tensor]) -> None:
    target = binary_target(batch["labels"], batch["lam"])
    # lam is 0 or 1, or both rows of the pair have one class
    assert target.sum(-1).tolist() == [1, 1, 1, 1, 1, 1]
    batch["lam"][4:] = 0.5
    target = binary_target(batch["labels"], batch["lam"])
    assert target.sum(-1).tolist() == [1, 1, 1, 1, 2, 2]
    expected = F.binary_cross_entropy_with_logits(batch["cls"].double(), target)
    loss = mixed_binary_cross_entropy(batch["cls"], batch["labels"], batch["lam"])
    torch.testing.assert_close(loss, expected.float())


def test_bce_with_a_teacher_is_the_weighted_sum(batch: dict[str, torch.Tensor]) -> None:
    loss = DistillationLoss(kind="hard", alpha=0.25, smoothing=0.0, bce=True)
    parts = loss((batch["cls"], batch["dist"]), batch["labels"], batch["lam"], batch["teacher"])
    target = binary_target(batch["labels"], batch["lam"])
    base = F.binary_cross_entropy_with_logits(batch["cls"].double(), target)
    distilled = F.cross_entropy(batch["dist"].double(), batch["teacher"].argmax(-1))
    expected = (0.75 * base + 0.25 * distilled, base, distilled)
    torch.testing.assert_close(list(parts), [value.float() for value in expected])


def test_bce_without_a_teacher_uses_both_heads(batch: dict[str, torch.Tensor]) -> None:
    loss = DistillationLoss(kind="none", smoothing=0.0, bce=True)
    both = loss((batch["cls"], batch["dist"]), batch["labels"], batch["lam"])
    mean = loss((batch["cls"] + batch["dist"]) / 2, batch["labels"], batch["lam"])
    assert torch.equal(both.loss, mean.loss) and both.distill.item() == 0


@pytest.mark.parametrize("bce", [False, True])
@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_one_head_has_the_gradients_of_both_losses(
    kind: str, bce: bool, batch: dict[str, torch.Tensor]
) -> None:
    loss = DistillationLoss(kind=kind, alpha=0.3, tau=2.0, smoothing=0.0, bce=bce)
    logits = batch["cls"].requires_grad_()
    parts = loss(logits, batch["labels"], batch["lam"], batch["teacher"])
    base = DistillationLoss(kind="none", smoothing=0.0, bce=bce)
    labels_alone = base(logits, batch["labels"], batch["lam"]).loss
    if kind == "hard":
        teacher_alone = F.cross_entropy(logits.double(), batch["teacher"].argmax(-1))
    else:
        own, theirs = (F.log_softmax(each.double() / 2, -1) for each in (logits, batch["teacher"]))
        teacher_alone = 4 * F.kl_div(own, theirs, reduction="batchmean", log_target=True)
    expected = 0.7 * labels_alone + 0.3 * teacher_alone
    torch.testing.assert_close(parts.loss, expected.float())
    gradients = [torch.autograd.grad(each, logits)[0] for each in (parts.loss, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-7)
    assert torch.equal(parts.base, labels_alone) and parts.distill > 0


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"kind": "firm"}, "none, soft, hard"),
        ({"alpha": 1.5}, "1.5"),
        ({"tau": 0.0}, "positive"),
        ({"smoothing": 1.0}, "smoothing"),
        ({"bce": True, "smoothing": 0.1}, "smoothing must be 0"),
    ],
)
def test_loss_rejects_wrong_settings(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DistillationLoss(**setting)


@pytest.mark.parametrize("bce", [False, True])
def test_loss_rejects_a_missing_teacher(bce: bool, batch: dict[str, torch.Tensor]) -> None:
    loss = DistillationLoss(kind="hard", smoothing=0.0, bce=bce)
    with pytest.raises(ValueError, match="teacher's output"):
        loss((batch["cls"], batch["dist"]), batch["labels"], batch["lam"])


def test_cosub_is_the_loss_of_deit() -> None:
    """deit's engine.py: four cross-entropies, each a quarter, to dense targets."""
    random = torch.Generator().manual_seed(5)
    logits = torch.randn(8, 7, generator=random, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 3, 6, 6])
    lam = torch.tensor([0.3, 0.3, 1.0, 1.0])
    targets = torch.zeros(4, 7, dtype=torch.float64)
    for row, share in enumerate(lam.tolist()):
        targets[row, labels[row]] = 1
        if share < 1:
            targets[row, labels[row ^ 1]] = 1
    bce = torch.nn.BCEWithLogitsLoss()
    one, other = logits.chunk(2)
    learned = bce(one, other.detach().sigmoid()) + bce(other, one.detach().sigmoid())
    expected = 0.25 * (bce(one, targets) + bce(other, targets) + learned)
    (gradient,) = torch.autograd.grad(expected, logits)
    parts = CosubLoss()(logits, labels, lam)
    torch.testing.assert_close(parts.loss.double(), expected, rtol=0, atol=1e-6)
    assert parts.distill.item() == pytest.approx(learned.item() / 2, abs=1e-6)
    (found,) = torch.autograd.grad(parts.loss, logits)
    torch.testing.assert_close(found, gradient, rtol=0, atol=1e-7)


def test_cosub_of_two_heads_is_that_of_their_mean() -> None:
    heads = torch.randn(2, 8, 5, generator=torch.Generator().manual_seed(6)).unbind()
    labels, lam = torch.tensor([0, 1, 2, 3]), torch.full((4,), 0.5)
    of_heads = CosubLoss()((heads[0], heads[1]), labels, lam)
    torch.testing.assert_close(of_heads, CosubLoss()((heads[0] + heads[1]) / 2, labels, lam))
