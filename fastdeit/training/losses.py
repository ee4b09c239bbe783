"""The training loss: from the outputs of a step to `LossParts`.

The formulas of both heads are in `fastdeit.kernels.distill`; here are the choice of their form and
the binary cross-entropy of DeiT III. The training step calls the teacher; the loss gets its
output. Source: Touvron et al. 2021 (2012.12877), equations 2 and 3.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from fastdeit.kernels.distill import (
    KINDS,
    LossParts,
    check_inputs,
    distill,
    swap_pairs,
    teacher_loss,
)

Criterion = Callable[..., LossParts]
"""A loss with the arguments and the result of a `DistillationLoss`."""


@dataclass(frozen=True)
class DistillationLoss:
    """The loss of a run: kind "none", "soft" or "hard", weight alpha, temperature tau, label
    smoothing (DeiT, arXiv 2012.12877, equations 2 and 3). A model with one head has both losses on
    it.

    legacy: divide the soft form by the number of classes too, as deit's code does. bce: the base is
    binary cross-entropy to the binarised mixed target (DeiT III). Raises ValueError for a value out
    of range.
    """

    kind: str = "hard"
    alpha: float = 0.5
    tau: float = 3.0
    smoothing: float = 0.1
    legacy: bool = False
    bce: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)} (got {self.kind!r})")
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha must be 0 to 1 (got {self.alpha})")
        if not self.tau > 0:
            raise ValueError(f"tau must be positive (got {self.tau})")
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"smoothing must lie in [0, 1) (got {self.smoothing})")
        if self.bce and self.smoothing > 0:
            # smoothing would make every class a positive one
            raise ValueError(f"smoothing must be 0 with bce (got {self.smoothing})")

    def __call__(
        self,
        outputs: torch.Tensor | tuple[torch.Tensor, torch.Tensor],
        labels: torch.Tensor,
        lam: torch.Tensor,
        teacher_output: torch.Tensor | None = None,
    ) -> LossParts:
        """Return the loss of a batch of pairs (row i is mixed with row i ^ 1).

        outputs: logits (B, K) of a model with one head, or the pair (class logits, distillation
        logits). labels: (B,) int64; lam: (B,) fp32; teacher_output: class ids (B,) for "hard", or
        logits (B, K). Raises ValueError if the kind needs a teacher and there is none.
        """
        cls_logits, dist_logits = (outputs, None) if isinstance(outputs, torch.Tensor) else outputs
        if self.bce:
            return self._binary(cls_logits, dist_logits, labels, lam, teacher_output)
        return distill(
            cls_logits,
            dist_logits,
            labels,
            lam,
            teacher_output,
            smoothing=self.smoothing,
            kind=self.kind,
            alpha=self.alpha,
            tau=self.tau,
            legacy=self.legacy,
        )

    def _binary(
        self,
        cls_logits: torch.Tensor,
        dist_logits: torch.Tensor | None,
        labels: torch.Tensor,
        lam: torch.Tensor,
        teacher: torch.Tensor | None,
    ) -> LossParts:
        check_inputs(cls_logits, dist_logits, teacher, self.kind)
        if teacher is None:
            logits = cls_logits
            if dist_logits is not None:
                logits = (cls_logits.float() + dist_logits.float()) / 2
            base = mixed_binary_cross_entropy(logits, labels, lam)
            return LossParts(base, base.detach(), torch.zeros_like(base))
        base = mixed_binary_cross_entropy(cls_logits, labels, lam)
        taught = cls_logits if dist_logits is None else dist_logits
        distilled = teacher_loss(taught, teacher, kind=self.kind, tau=self.tau, legacy=self.legacy)
        loss = (1 - self.alpha) * base + self.alpha * distilled
        return LossParts(loss, base.detach(), distilled.detach())


class CosubLoss:
    """The loss of two submodels that train together (arXiv 2212.04884): each learns the labels, and
    the other's output.

    Half of it is the binary cross-entropy to the labels, half that to the sigmoid of the other
    submodel's logits, which get no gradient from it. Source: deit, engine.py.
    """

    def __call__(
        self,
        outputs: torch.Tensor | tuple[torch.Tensor, torch.Tensor],
        labels: torch.Tensor,
        lam: torch.Tensor,
        teacher_output: torch.Tensor | None = None,
    ) -> LossParts:
        """Return the loss of a batch of pairs; `distill` is the term from the other submodel.

        outputs: logits (2 * B, K), those of one submodel first; with two heads, their mean counts.
        labels: (B,) int64; lam: (B,) fp32.
        """
        logits = outputs if isinstance(outputs, torch.Tensor) else torch.stack(outputs).mean(0)
        one, other = logits.float().chunk(2)
        base = (
            mixed_binary_cross_entropy(one, labels, lam)
            + mixed_binary_cross_entropy(other, labels, lam)
        ) / 2
        agreement = (_learn_from(one, other) + _learn_from(other, one)) / 2
        return LossParts((base + agreement) / 2, base.detach(), agreement.detach())


def _learn_from(logits: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return F.binary_cross_entropy_with_logits(logits, other.detach().sigmoid())


def mixed_binary_cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, lam: torch.Tensor
) -> torch.Tensor:
    """Return the binary cross-entropy, mean over B·K, to the classes with a positive share of the
    mixed target.

    logits: (B, K), used in fp32; labels: (B,) int64; lam: (B,) fp32. Source: DeiT III
    (2204.07118), §3.
    """
    logits = logits.float()
    partner = swap_pairs(labels)
    same = partner == labels
    own = logits.gather(1, labels[:, None])[:, 0]
    other = logits.gather(1, partner[:, None])[:, 0]
    # bce(z, t) = softplus(z) - t·z, with t = 1 for at most two classes a row; one class may be both
    positives = own * ((lam > 0) | same) + other * ((lam < 1) & ~same)
    return (F.softplus(logits).sum(-1) - positives).mean() / logits.shape[-1]
