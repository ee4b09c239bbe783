"""Fused form of `distill`: loss, both terms and both heads' gradients in one launch; no (B, K)
target is built.

One program per row and head (rows.py) writes the row's term to a buffer and increments a counter;
the last one adds the terms in the order of the rows, so that the loss does not depend on the order
of the programs.

Bytes per image, one head: reads K logits (2·K with the teacher's), writes K gradients; the backward
reads and writes them again, to apply the incoming gradient.
"""

import torch
import triton
import triton.language as tl

from fastdeit.kernels.distill_kernels.rows import (
    cross_entropy_row,
    divergence_row,
    is_last,
    load_decision,
    mean_of_rows,
)
from fastdeit.kernels.launch_configs import blocks_of, find_launch
from fastdeit.kernels.operators import operator


@triton.jit
def _teacher_row(
    logits_ptr,
    teacher_ptr,
    grad_ptr,
    row,
    scale,
    weight,
    K: tl.constexpr,
    HARD: tl.constexpr,
    TEACHER_IDS: tl.constexpr,
    WRITE_GRADS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Return the distillation term of a row, and write its gradient: with HARD against the
    teacher's decision, else against its logits."""
    if HARD:
        decision = load_decision(teacher_ptr, row, K, TEACHER_IDS, BLOCK)
        part = cross_entropy_row(
            logits_ptr,
            logits_ptr,
            grad_ptr,
            decision,
            decision,
            1.0,
            0.0,
            weight,
            K,
            False,
            WRITE_GRADS,
            BLOCK,
        )
    else:
        teacher_row_ptr = teacher_ptr + row * K
        part = divergence_row(
            logits_ptr, teacher_row_ptr, grad_ptr, scale, weight, K, WRITE_GRADS, BLOCK
        )
    return part


@triton.jit
def _distill_fwd_kernel(
    cls_ptr,
    dist_ptr,
    labels_ptr,
    lam_ptr,
    teacher_ptr,
    grads_ptr,
    rows_ptr,
    counter_ptr,
    loss_ptr,
    base_ptr,
    distill_ptr,
    batch,
    smoothing,
    alpha,
    scale,
    base_weight,
    distill_weight,
    distill_scale,
    K: tl.constexpr,
    MEAN: tl.constexpr,
    HARD: tl.constexpr,
    SOFT: tl.constexpr,
    TEACHER_IDS: tl.constexpr,
    WRITE_GRADS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):
    """Compute the loss of one row of one head and its gradient, K logits; the program that ends
    last adds the rows. grid: batch, heads."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    if head == 0:
        own = tl.load(labels_ptr + row).to(tl.int64)
        other = tl.load(labels_ptr + (row ^ 1)).to(tl.int64)
        lam = tl.load(lam_ptr + row)
        part = cross_entropy_row(
            cls_ptr + row * K,
            dist_ptr + row * K,
            grads_ptr + row * K,
            own,
            other,
            lam,
            smoothing,
            base_weight,
            K,
            MEAN,
            WRITE_GRADS,
            BLOCK,
        )
        tl.store(rows_ptr + row, part)
    elif HARD or SOFT:
        part = _teacher_row(
            dist_ptr + row * K,
            teacher_ptr,
            grads_ptr + (batch + row) * K,
            row,
            scale,
            distill_weight,
            K,
            HARD,
            TEACHER_IDS,
            WRITE_GRADS,
            BLOCK,
        )
        tl.store(rows_ptr + batch + row, part)

    tl.debug_barrier()  # the term is written before the program is counted
    if is_last(counter_ptr):
        base = mean_of_rows(rows_ptr, batch, BLOCK_ROWS)
        distilled = 0.0
        if HARD or SOFT:
            distilled = distill_scale * mean_of_rows(rows_ptr + batch, batch, BLOCK_ROWS)
        tl.store(base_ptr, base)
        tl.store(distill_ptr, distilled)
        tl.store(loss_ptr, (1.0 - alpha) * base + alpha * distilled)
        tl.store(counter_ptr, 0)


@triton.jit
def _distill_bwd_kernel(grads_ptr, grad_loss_ptr, out_ptr, n, BLOCK: tl.constexpr):
    """Multiply BLOCK of the n gradients by the incoming one, a single number; grid: blocks."""
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    grads = tl.load(grads_ptr + offs, mask=offs < n, other=0.0).to(tl.float32)
    scaled = grads * tl.load(grad_loss_ptr).to(tl.float32)
    tl.store(out_ptr + offs, scaled.to(out_ptr.dtype.element_ty), mask=offs < n)


_counters: dict[tuple[int, int], torch.Tensor] = {}


def counter_of(device: torch.device) -> torch.Tensor | None:
    """Return the counter of finished programs for the current stream, int32 (1,); it is 0 before
    and after every launch, so it is never reset.

    The launches of a stream run one after another and share it. On a CPU, and while a CUDA graph is
    captured, the result is None, and the op makes a counter of its own: two graphs that were
    captured on one stream may be replayed at the same time. The same holds for compiled code, which
    does not call this function.
    """
    if device.type != "cuda" or torch.cuda.is_current_stream_capturing():
        return None
    key = (device.index, torch.cuda.current_stream(device).cuda_stream)
    if key not in _counters:
        _counters[key] = torch.zeros(1, dtype=torch.int32, device=device)
    return _counters[key]


def _grads_like(cls_logits: torch.Tensor, kind: str, with_grads: bool) -> torch.Tensor:
    """Allocate the gradients (heads, B, K): one for kind "none", whose heads share it; fp32 for
    fp16 logits.

    The gradients of a mean are below the range of fp16 until the backward applies a loss scaler's
    factor.
    """
    heads = 1 if kind == "none" else 2
    if not with_grads:
        heads = 0
    dtype = torch.float32 if cls_logits.dtype == torch.float16 else cls_logits.dtype
    return cls_logits.new_empty((heads, *cls_logits.shape), dtype=dtype)


def _distill_bwd_fake(
    grads: torch.Tensor, grad_loss: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    return torch.empty_like(grads, dtype=dtype)


@operator("distill_bwd", fake=_distill_bwd_fake)
def distill_bwd_triton(
    grads: torch.Tensor, grad_loss: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """Return grads times the 0-d grad_loss, in fp32, cast to dtype at the end; the host does not
    read the factor."""
    out = _distill_bwd_fake(grads, grad_loss, dtype)
    launch = find_launch("distill_bwd", grads.device, bits=8 * grads.element_size())
    if grads.numel():
        grid = (blocks_of(grads.numel(), launch["BLOCK"]),)
        _distill_bwd_kernel[grid](grads, grad_loss, out, grads.numel(), **launch)
    return out


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    _, base, distilled, grads = output
    ctx.save_for_backward(grads)
    ctx.mark_non_differentiable(base, distilled, grads)
    ctx.set_materialize_grads(False)
    ctx.dtype = inputs[0].dtype
    ctx.has_dist = inputs[1] is not None
    ctx.rest = len(inputs) - 2


def _backward(ctx, grad_loss, *_):  # type: ignore[no-untyped-def]
    if grad_loss is None:
        return None, None, *[None] * ctx.rest
    (grads,) = ctx.saved_tensors
    heads = distill_bwd_triton(grads, grad_loss, ctx.dtype).unbind(0)
    return heads[0], heads[-1] if ctx.has_dist else None, *[None] * ctx.rest


def _distill_fake(
    cls_logits: torch.Tensor,
    dist_logits: torch.Tensor | None,
    labels: torch.Tensor,
    lam: torch.Tensor,
    teacher: torch.Tensor | None,
    counter: torch.Tensor | None,
    smoothing: float,
    kind: str,
    alpha: float,
    tau: float,
    legacy: bool,
    with_grads: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    loss, base, distilled = (cls_logits.new_empty((), dtype=torch.float32) for _ in range(3))
    return loss, base, distilled, _grads_like(cls_logits, kind, with_grads)


@operator("distill", fake=_distill_fake, save=_save, backward=_backward)
def distill_triton(
    cls_logits: torch.Tensor,
    dist_logits: torch.Tensor | None,
    labels: torch.Tensor,
    lam: torch.Tensor,
    teacher: torch.Tensor | None,
    counter: torch.Tensor | None,
    smoothing: float,
    kind: str,
    alpha: float,
    tau: float,
    legacy: bool,
    with_grads: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Launch the kernel; return loss, base and distill, 0-d fp32, and the gradients of loss (heads,
    B, K), which the backward scales.

    Arguments as checked by `distill`; counter: `counter_of`, or None for a new one. Takes
    CPU tensors under TRITON_INTERPRET=1.
    """
    batch, classes = cls_logits.shape
    grads = _grads_like(cls_logits, kind, with_grads)
    loss, base, distilled = (cls_logits.new_empty((), dtype=torch.float32) for _ in range(3))
    if not batch:
        distilled.fill_(0.0 if kind == "none" else float("nan"))
        return loss.fill_(float("nan")), base.fill_(float("nan")), distilled, grads
    if counter is None:
        counter = torch.zeros(1, dtype=torch.int32, device=cls_logits.device)
    alpha = 0.0 if kind == "none" else alpha
    scale = 1 / tau if kind == "soft" else 1.0
    distill_scale = tau**2 / (classes if legacy else 1) if kind == "soft" else 1.0
    mean_of_both = kind == "none" and dist_logits is not None
    heads = 1 if kind == "none" else 2
    cls_logits = cls_logits.contiguous()
    dist_logits = cls_logits if dist_logits is None else dist_logits.contiguous()
    teacher = labels if teacher is None else teacher.contiguous()
    launch = find_launch(
        "distill_fwd", cls_logits.device, bits=8 * cls_logits.element_size(), D=classes
    )
    _distill_fwd_kernel[(batch, heads)](
        cls_logits,
        dist_logits,
        labels.contiguous(),
        lam.contiguous(),
        teacher,
        grads,
        cls_logits.new_empty(heads * batch, dtype=torch.float32),
        counter,
        loss,
        base,
        distilled,
        batch,
        smoothing,
        alpha,
        scale,
        (1 - alpha) / batch * (0.5 if mean_of_both else 1.0),
        alpha * distill_scale * scale / batch,
        distill_scale,
        K=classes,
        MEAN=mean_of_both,
        HARD=kind == "hard",
        SOFT=kind == "soft",
        TEACHER_IDS=teacher.ndim == 1,
        WRITE_GRADS=with_grads,
        **launch,
    )
    return loss, base, distilled, grads
