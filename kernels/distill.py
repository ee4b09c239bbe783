"""DeiT's training loss over both heads: the mixed, smoothed label on the class head, the teacher on
the distillation head.

    loss = (1 - alpha) · base + alpha · distill
    base = mean_b [(1 - eps) · mixed_b + eps · mean_k nll(k)]
    mixed_b = lam_b · nll(y_b) + (1 - lam_b) · nll(y_partner)
    distill, hard = mean_b nll'(argmax_k teacher)
    distill, soft = tau² · mean_b KL(softmax(teacher / tau) ‖ softmax(dist / tau))

Kind "none" has only the base. The teacher's decision, its class, is not smoothed. legacy divides
the soft form by K too, as deit's code does. A model with one head has both terms on it (the paper's
table 3, "hard distillation" without the token): its logits are passed for both heads, and autograd
adds the two gradients. That costs one more launch, which reads 2·K and writes K values per image.

nll(k) = -log softmax(logits)[k]; the partner of row b is row b ^ 1. Kind "none" takes the mean of
both heads' logits, so that every head has a gradient. The (B, K) target is never built: it has two
nonzero peaks over a constant floor.

cls_logits, dist_logits: (B, K) fp32, bf16 or fp16; labels: (B,) int64; lam: (B,) fp32; math in
fp32. Bytes per image: reads 2·K logits (3·K with a teacher's), writes 2·K gradients; loss and both
gradients come from one launch (distill_kernels/fused.py), and the backward multiplies them by the
incoming gradient. Called once a micro-step by `fastdeit.training.losses`. Source: Touvron et al.
2021 (2012.12877), eq. 2 and 3; smoothing as timm's `mixup_target`.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from fastdeit.kernels.backend import is_fused
from fastdeit.kernels.distill_kernels.fused import counter_of, distill_triton

KINDS = ("none", "soft", "hard")
"""The kinds of distillation."""
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""The dtypes of logits."""


class LossParts(NamedTuple):
    """The loss to differentiate and its two terms before weighting; each a 0-d fp32 tensor."""

    loss: torch.Tensor
    base: torch.Tensor
    distill: torch.Tensor


def swap_pairs(rows: torch.Tensor) -> torch.Tensor:
    """Return rows (B, ...), B even, with row i ^ 1 in place of row i."""
    return rows.unflatten(0, (rows.shape[0] // 2, 2)).flip(1).flatten(0, 1)


def mixed_cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, lam: torch.Tensor, smoothing: float
) -> torch.Tensor:
    """Return the mean cross-entropy of logits (B, K) to lam · s(label) + (1 - lam) · s(partner's
    label), with s the smoothed label; 0-d fp32."""
    logp = F.log_softmax(logits.float(), dim=-1)
    own = logp.gather(1, labels[:, None])[:, 0]
    other = logp.gather(1, swap_pairs(labels)[:, None])[:, 0]
    peaks = lam * own + (1 - lam) * other
    return -((1 - smoothing) * peaks + smoothing * logp.mean(-1)).mean()


def hard_distillation(dist_logits: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Return the mean cross-entropy to the teacher's decision, 0-d fp32; teacher: class ids (B,) or
    logits (B, K)."""
    decision = teacher.argmax(-1) if teacher.ndim == 2 else teacher.long()
    return F.cross_entropy(dist_logits.float(), decision)


def soft_distillation(
    dist_logits: torch.Tensor, teacher: torch.Tensor, tau: float, legacy: bool
) -> torch.Tensor:
    """Return tau² · KL(teacher ‖ student) at temperature tau, mean over the batch, 0-d fp32; legacy
    divides by K too. Both logits: (B, K)."""
    student_logp = F.log_softmax(dist_logits.float() / tau, dim=-1)
    teacher_logp = F.log_softmax(teacher.float() / tau, dim=-1)
    divergence = (
        F.kl_div(student_logp, teacher_logp, reduction="batchmean", log_target=True) * tau**2
    )
    return divergence / dist_logits.shape[-1] if legacy else divergence


def teacher_loss(
    dist_logits: torch.Tensor, teacher: torch.Tensor, *, kind: str, tau: float, legacy: bool
) -> torch.Tensor:
    """Return the distillation head's term of the loss, kind "hard" or "soft"; 0-d fp32."""
    if kind == "hard":
        return hard_distillation(dist_logits, teacher)
    return soft_distillation(dist_logits, teacher, tau, legacy)


def distill_reference(
    cls_logits: torch.Tensor,
    dist_logits: torch.Tensor | None,
    labels: torch.Tensor,
    lam: torch.Tensor,
    teacher: torch.Tensor | None,
    *,
    smoothing: float,
    kind: str,
    alpha: float,
    tau: float,
    legacy: bool = False,
) -> LossParts:
    """Compute the loss in plain torch, fp32 inside; arguments and result as `distill`."""
    if teacher is None:
        logits = (
            cls_logits if dist_logits is None else (cls_logits.float() + dist_logits.float()) / 2
        )
        base = mixed_cross_entropy(logits, labels, lam, smoothing)
        return LossParts(base, base.detach(), torch.zeros_like(base))
    base = mixed_cross_entropy(cls_logits, labels, lam, smoothing)
    taught = cls_logits if dist_logits is None else dist_logits
    distilled = teacher_loss(taught, teacher, kind=kind, tau=tau, legacy=legacy)
    return LossParts((1 - alpha) * base + alpha * distilled, base.detach(), distilled.detach())


def check_inputs(
    cls_logits: torch.Tensor,
    dist_logits: torch.Tensor | None,
    teacher: torch.Tensor | None,
    kind: str,
) -> None:
    """Raise ValueError unless the heads and the teacher fit this kind of loss."""
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)} (got {kind!r})")
    _check_logits(cls_logits, dist_logits)
    if kind == "none":
        if teacher is not None:
            raise ValueError("the teacher's output must be None for kind 'none'")
        return
    if teacher is None:
        raise ValueError(f"kind {kind!r} needs the teacher's output")
    got = f"(got {tuple(teacher.shape)} {teacher.dtype})"
    if kind == "soft" and teacher.shape != cls_logits.shape:
        rule = f"logits {tuple(cls_logits.shape)}"
        raise ValueError(f"the teacher's output for kind 'soft' must be {rule} {got}")
    if kind == "hard" and not _decides(teacher, cls_logits.shape):
        rule = f"class ids ({len(cls_logits)},) or logits like the student's"
        raise ValueError(f"the teacher's output for kind 'hard' must be {rule} {got}")


def _check_logits(cls_logits: torch.Tensor, dist_logits: torch.Tensor | None) -> None:
    got = f"(got {tuple(cls_logits.shape)} {cls_logits.dtype})"
    if cls_logits.ndim != 2 or cls_logits.dtype not in DTYPES:
        raise ValueError(f"logits must be (B, K) in {DTYPES} {got}")
    if len(cls_logits) % 2:
        raise ValueError(f"a batch must hold whole pairs {got}")
    if dist_logits is None:
        return
    if dist_logits.shape != cls_logits.shape or dist_logits.dtype != cls_logits.dtype:
        other = f"{tuple(dist_logits.shape)} {dist_logits.dtype}"
        raise ValueError(f"both heads' logits must have one shape and dtype {got} and {other}")


def _decides(teacher: torch.Tensor, shape: torch.Size) -> bool:
    return teacher.shape == (shape if teacher.is_floating_point() else shape[:1])


def distill(
    cls_logits: torch.Tensor,
    dist_logits: torch.Tensor | None,
    labels: torch.Tensor,
    lam: torch.Tensor,
    teacher: torch.Tensor | None,
    *,
    smoothing: float,
    kind: str,
    alpha: float,
    tau: float,
    legacy: bool = False,
) -> LossParts:
    """Compute the whole loss of one step; only `.loss` has a gradient.

    cls_logits, dist_logits: (B, K), B even; dist_logits None: a model with one head, which gets the
    sum of both gradients. labels: (B,) int64. lam: (B,) fp32, the share of a row's own label.
    teacher: kind "hard": class ids (B,) of any integer dtype or logits (B, K); "soft": logits (B,
    K); "none": None. A label out of range makes the fused loss NaN; the reference raises. The loss
    of an empty batch is NaN, as a mean is. Raises ValueError if kind, heads and teacher do not fit
    each other.
    """
    check_inputs(cls_logits, dist_logits, teacher, kind)
    if not is_fused(cls_logits):
        inputs = (cls_logits, dist_logits, labels, lam, teacher)
        return distill_reference(
            *inputs, smoothing=smoothing, kind=kind, alpha=alpha, tau=tau, legacy=legacy
        )
    if dist_logits is None and teacher is not None:
        dist_logits = cls_logits
    with_grads = torch.is_grad_enabled() and any(
        head is not None and head.requires_grad for head in (cls_logits, dist_logits)
    )
    counter = None if torch.compiler.is_compiling() else counter_of(cls_logits.device)
    heads = (cls_logits, dist_logits)
    parts = distill_triton(
        *heads, labels, lam, teacher, counter, smoothing, kind, alpha, tau, legacy, with_grads
    )
    return LossParts(*parts[:3])
