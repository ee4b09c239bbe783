"""One row of one head in `distill`: its term of the loss and its gradient.

With x = logits - their maximum, s = Σ exp(x), and a target t that sums to one,

    cross-entropy = log s - Σ_k t_k · x_k,      d / d logit_k = exp(x_k) / s - t_k

where t has two peaks over a floor (labels) or one peak (the teacher's decision). The soft form
computes both softmaxes at once: KL = Σ_k q_k · (y_k - x_k) + log(s / s_y) and d / d logit_k = (p_k
- q_k) / tau, with q, y and s_y the teacher's. The first BLOCK classes stay in registers between the
pass that finds maximum and sum and the pass that writes the gradient; the others are read twice.
"""

import triton
import triton.language as tl


@triton.jit
def _logits(first_ptr, second_ptr, k, K: tl.constexpr, MEAN: tl.constexpr):
    """Load logits k of a row in fp32, with MEAN the mean of two heads; -inf past the last class."""
    z = tl.load(first_ptr + k, mask=k < K, other=float("-inf")).to(tl.float32)
    if MEAN:
        z = 0.5 * (z + tl.load(second_ptr + k, mask=k < K, other=float("-inf")).to(tl.float32))
    return z


@triton.jit
def _extend(top, total, z, scale):
    """Return the maximum, and the sum of exp(scale · (logit - maximum)), with the block z added."""
    higher = tl.maximum(top, tl.max(z, 0))
    return higher, total * tl.exp((top - higher) * scale) + tl.sum(tl.exp((z - higher) * scale), 0)


@triton.jit
def _entropy_block(
    z,
    k,
    top,
    total,
    grad_ptr,
    own,
    other,
    lam,
    smoothing,
    weight,
    K: tl.constexpr,
    WRITE_GRADS: tl.constexpr,
):
    x = tl.where(k < K, z - top, 0.0)
    target = smoothing / K + (1.0 - smoothing) * (
        tl.where(k == own, lam, 0.0) + tl.where(k == other, 1.0 - lam, 0.0)
    )
    if WRITE_GRADS:
        grad = weight * (tl.exp(x) / total - target)
        tl.store(grad_ptr + k, grad.to(grad_ptr.dtype.element_ty), mask=k < K)
    return target * x


@triton.jit
def cross_entropy_row(
    first_ptr,
    second_ptr,
    grad_ptr,
    own,
    other,
    lam,
    smoothing,
    weight,
    K: tl.constexpr,
    MEAN: tl.constexpr,
    WRITE_GRADS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Return a row's cross-entropy to lam · s(own) + (1 - lam) · s(other) and write weight times
    its gradient; NaN for a label out of range."""
    k = tl.arange(0, BLOCK)
    z = _logits(first_ptr, second_ptr, k, K, MEAN)
    top = tl.max(z, 0)
    total = tl.sum(tl.exp(z - top), 0)
    for start in range(BLOCK, K, BLOCK):
        top, total = _extend(top, total, _logits(first_ptr, second_ptr, start + k, K, MEAN), 1.0)
    is_class = (own >= 0) & (own < K) & (other >= 0) & (other < K)
    own = own.to(tl.int32)
    other = other.to(tl.int32)
    dot = _entropy_block(
        z, k, top, total, grad_ptr, own, other, lam, smoothing, weight, K, WRITE_GRADS
    )
    for start in range(BLOCK, K, BLOCK):
        z = _logits(first_ptr, second_ptr, start + k, K, MEAN)
        dot += _entropy_block(
            z, start + k, top, total, grad_ptr, own, other, lam, smoothing, weight, K, WRITE_GRADS
        )
    return tl.where(is_class, tl.log(total) - tl.sum(dot, 0), float("nan"))


@triton.jit
def _divergence_block(
    z,
    t,
    k,
    top,
    total,
    t_top,
    t_total,
    grad_ptr,
    scale,
    weight,
    K: tl.constexpr,
    WRITE_GRADS: tl.constexpr,
):
    x = tl.where(k < K, (z - top) * scale, 0.0)
    y = tl.where(k < K, (t - t_top) * scale, 0.0)
    q = tl.exp(y) / t_total
    if WRITE_GRADS:
        grad = weight * (tl.exp(x) / total - q)
        tl.store(grad_ptr + k, grad.to(grad_ptr.dtype.element_ty), mask=k < K)
    return tl.where(k < K, q * (y - x), 0.0)


@triton.jit
def divergence_row(
    logits_ptr,
    teacher_ptr,
    grad_ptr,
    scale,
    weight,
    K: tl.constexpr,
    WRITE_GRADS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Return a row's KL(softmax(scale · teacher) ‖ softmax(scale · logits)) and write weight times
    (p - q)."""
    k = tl.arange(0, BLOCK)
    z = _logits(logits_ptr, logits_ptr, k, K, False)
    t = _logits(teacher_ptr, teacher_ptr, k, K, False)
    top = tl.max(z, 0)
    t_top = tl.max(t, 0)
    total = tl.sum(tl.exp((z - top) * scale), 0)
    t_total = tl.sum(tl.exp((t - t_top) * scale), 0)
    for start in range(BLOCK, K, BLOCK):
        top, total = _extend(
            top, total, _logits(logits_ptr, logits_ptr, start + k, K, False), scale
        )
        t_top, t_total = _extend(
            t_top, t_total, _logits(teacher_ptr, teacher_ptr, start + k, K, False), scale
        )
    terms = _divergence_block(
        z, t, k, top, total, t_top, t_total, grad_ptr, scale, weight, K, WRITE_GRADS
    )
    for start in range(BLOCK, K, BLOCK):
        z = _logits(logits_ptr, logits_ptr, start + k, K, False)
        t = _logits(teacher_ptr, teacher_ptr, start + k, K, False)
        terms += _divergence_block(
            z, t, start + k, top, total, t_top, t_total, grad_ptr, scale, weight, K, WRITE_GRADS
        )
    return tl.sum(terms, 0) + tl.log(total / t_total)


@triton.jit
def decision_of_row(teacher_ptr, K: tl.constexpr, BLOCK: tl.constexpr):
    """Return the first class with a row's largest logit, int64."""
    k = tl.arange(0, BLOCK)
    top, decision = tl.max(_logits(teacher_ptr, teacher_ptr, k, K, False), 0, return_indices=True)
    for start in range(BLOCK, K, BLOCK):
        value, place = tl.max(
            _logits(teacher_ptr, teacher_ptr, start + k, K, False), 0, return_indices=True
        )
        decision = tl.where(value > top, start + place, decision)
        top = tl.maximum(top, value)
    return decision.to(tl.int64)


@triton.jit
def mean_of_rows(rows_ptr, batch, BLOCK_ROWS: tl.constexpr):
    """Return the mean of the rows' terms, added in a fixed order; they are not read from the
    first-level cache, since other programs wrote them."""
    offs = tl.arange(0, BLOCK_ROWS)
    total = tl.zeros((BLOCK_ROWS,), tl.float32)
    start = 0
    # not a range: Triton's interpreter takes only constants in one
    while start < batch:
        total += tl.load(
            rows_ptr + start + offs, mask=start + offs < batch, other=0.0, cache_modifier=".cg"
        )
        start += BLOCK_ROWS
    return tl.sum(total, 0) / batch


@triton.jit
def is_last(counter_ptr):
    """Count this program; return True in the last one, which sees what all others wrote."""
    done = tl.atomic_add(counter_ptr, 1, sem="acq_rel", scope="gpu")
    return done == tl.num_programs(0) * tl.num_programs(1) - 1


@triton.jit
def load_decision(teacher_ptr, row, K: tl.constexpr, IS_ID: tl.constexpr, BLOCK: tl.constexpr):
    """Return the teacher's class of a row, read or found among its logits."""
    if IS_ID:
        decision = tl.load(teacher_ptr + row).to(tl.int64)
    else:
        decision = decision_of_row(teacher_ptr + row * K, K, BLOCK)
    return decision
