"""`attention`: the reference against softmax written out in float64; the kernels against that and
against the error of torch.

.venv/bin/python -m pytest tests/kernels/test_attention.py, about 25 s
"""

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from benchmarks.measuring.forms import use_form
from fastdeit.kernels import attention as module
from fastdeit.kernels import backend, launch_configs
from fastdeit.kernels.attention import (
    attention,
    attention_reference,
    attention_triton,
    attention_weights,
    attention_weights_reference,
    attention_weights_triton,
)
from fastdeit.kernels.attention_kernels import blocks, bwd_pair, bwd_whole
from fastdeit.kernels.attention_kernels.bwd import attention_bwd_triton
from fastdeit.kernels.attention_kernels.resident import MAX_RESIDENT, split_keys
from fastdeit.kernels.attention_kernels.rows import TAIL, tail
from fastdeit.kernels.launch_configs import find_form
from tests.kernels import interpreter
from tests.kernels.interpreter import DEVICE, INTERPRETED
from tests.kernels.properties import given, settings, st

interpreter.correct()
# rows and keys past the last are computed and discarded, whatever their value
pytestmark = pytest.mark.filterwarnings("ignore:.*(overflow|invalid value|All-NaN):RuntimeWarning")
HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
SHAPES = {
    "N198-D64": (1, 198, 3, 2, 64),
    "N197-D64": (2, 197, 3, 1, 64),
    "N1": (2, 1, 3, 2, 64),
    "N17-D32": (3, 17, 3, 2, 32),
    "N65-D96": (1, 65, 3, 2, 96),
    "N129-D128": (1, 129, 3, 1, 128),
    "N257-D64": (1, 257, 3, 1, 64),
    "N256-D32": (1, 256, 3, 1, 32),
}
SHAPES_384 = {"N578-D64": (1, 578, 3, 1, 64)}
SMALL = (2, 19, 3, 2, 32)

Pair = tuple[torch.Tensor, torch.Tensor]


@pytest.fixture(autouse=True)
def kernels_run() -> Iterator[None]:
    with backend.use_backend("triton"):
        yield


@pytest.fixture
def launches_of_16_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Launch fp32 tensors with the blocks, the narrow last block and the form of backward of bf16.

    On a GPU they keep their own launches: its registers would not suffice.
    """

    find = launch_configs._find_row

    def find_row(op: str, arch: int, bits: int, D: int, N: int) -> dict[str, Any]:
        return find(op, arch, 16, D, N)

    if INTERPRETED:
        monkeypatch.setattr(launch_configs, "_find_row", find_row)
        for part in (blocks, bwd_pair, bwd_whole):
            monkeypatch.setattr(part, "tail", lambda N, block, bits: tail(N, block, 16))


def weights_by_hand(qkv: torch.Tensor) -> torch.Tensor:
    q, k, _ = qkv.double().unbind(2)  # each (B, N, H, D)
    scores = torch.einsum("bnhd,bmhd->bhnm", q, k) / q.shape[-1] ** 0.5
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    return weights / weights.sum(-1, keepdim=True)


def attention_by_hand(qkv: torch.Tensor) -> torch.Tensor:
    return torch.einsum("bhnm,bmhd->bnhd", weights_by_hand(qkv), qkv.double()[:, :, 2]).flatten(2)


def draw(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def make_inputs(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Pair:
    """Return qkv and the gradient of its output."""
    batch, tokens, _, heads, size = shape
    return draw(shape, dtype), draw((batch, tokens, heads * size), dtype, seed=1)


def run(function: Any, qkv: torch.Tensor, grad: torch.Tensor) -> Pair:
    """Return the output and the gradient of qkv."""
    qkv = qkv.detach().requires_grad_()
    with interpreter.poisoned_memory():
        out = function(qkv)
        (dqkv,) = torch.autograd.grad(out, qkv, grad.to(out.dtype))
    return out.detach(), dqkv


def expect(qkv: torch.Tensor, grad: torch.Tensor) -> Pair:
    return run(attention_by_hand, qkv.double(), grad.double())


def error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the root mean square error relative to that of the expected values."""
    return ((actual.double() - expected).norm() / expected.norm()).item()


def assert_right(found: Pair, expected: Pair) -> None:
    for actual, wanted in zip(found, expected, strict=True):
        assert actual.dtype == torch.float32 and actual.shape == wanted.shape
        # scores and sums of a few hundred fp32 products: absolute errors of some 1e-6
        torch.testing.assert_close(actual, wanted.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [*SHAPES.values(), (3, 17, 3, 5, 24)], ids=[*SHAPES, "D24"])
def test_reference_equals_the_formula(shape: tuple[int, ...]) -> None:
    inputs = make_inputs(shape)
    assert_right(run(attention_reference, *inputs), expect(*inputs))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_attention_equals_the_formula(shape: tuple[int, ...]) -> None:
    inputs = make_inputs(shape)
    assert_right(run(attention, *inputs), expect(*inputs))


@pytest.mark.parametrize(
    "shape", [*SHAPES.values(), *SHAPES_384.values()], ids=[*SHAPES, *SHAPES_384]
)
def test_attention_equals_the_formula_with_16_bit_launches(
    shape: tuple[int, ...], launches_of_16_bits: None
) -> None:
    inputs = make_inputs(shape)
    assert_right(run(attention, *inputs), expect(*inputs))


@pytest.mark.parametrize("dtype", HALVES.values(), ids=HALVES)
@pytest.mark.parametrize(
    "shape", [*SHAPES.values(), *SHAPES_384.values()], ids=[*SHAPES, *SHAPES_384]
)
def test_attention_error_is_at_most_twice_that_of_torch(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    inputs = make_inputs(shape, dtype)
    expected = expect(*inputs)
    pairs = zip(run(attention, *inputs), run(attention_reference, *inputs), expected, strict=True)
    for ours, theirs, wanted in pairs:
        assert ours.dtype == dtype
        assert error(ours, wanted) <= 2 * error(theirs, wanted) + 1e-6


@settings(max_examples=4, deadline=None, derandomize=True, database=None)
@given(
    batch=st.integers(1, 3),
    tokens=st.integers(1, 100),
    heads=st.integers(1, 3),
    size=st.sampled_from(module.HEAD_DIMS),
)
def test_attention_of_any_shape_equals_the_formula(
    batch: int, tokens: int, heads: int, size: int
) -> None:
    inputs = make_inputs((batch, tokens, 3, heads, size))
    assert_right(run(attention, *inputs), expect(*inputs))


def test_attention_gradient_equals_finite_differences(launches_of_16_bits: None) -> None:
    qkv, grad = make_inputs(SMALL)
    _, dqkv = run(attention, qkv, grad)
    for part in range(3):
        step = torch.zeros_like(qkv)
        step[:, :, part] = 1e-2 * draw(tuple(qkv[:, :, part].shape), seed=2 + part)
        rise = ((attention(qkv + step) - attention(qkv - step)).double() * grad).sum() / 2
        # the difference neglects the third derivative, about 1e-4 of the first
        torch.testing.assert_close((dqkv * step).double().sum(), rise, rtol=2e-3, atol=1e-4)


def test_attention_handles_logits_of_ten_thousand(launches_of_16_bits: None) -> None:
    """All weight is on one key or on a few. The output is as exact as that of torch; the gradient
    is limited by scores that fp32 holds to 1e-3."""
    qkv, grad = make_inputs((1, 70, 3, 2, 64))
    qkv[:, :, :2] *= 60
    expected = expect(qkv, grad)
    # the error of the gradient is 1e-5 to 8e-4: NumPy's product, here `tl.dot`, depends on the
    # processor
    bounds = (1e-6, 1e-3)
    found = run(attention, qkv, grad)
    theirs = run(attention_reference, qkv, grad)
    for ours, torchs, wanted, bound in zip(found, theirs, expected, bounds, strict=True):
        assert ours.isfinite().all()
        assert error(ours, wanted) <= 2 * error(torchs, wanted) + bound


@pytest.mark.parametrize("tokens", [17, 70])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("sign", [-1, 1], ids=["low", "high"])
def test_equal_extreme_logits_give_equal_weights(
    sign: int, dtype: torch.dtype, tokens: int
) -> None:
    """Every logit is ±1e4: all weights are equal, and keys past the last have none."""
    qkv, grad = make_inputs((1, tokens, 3, 1, 64), dtype)
    qkv[:, :, 0] = 36.0
    qkv[:, :, 1] = sign * 36.0
    out, dqkv = run(attention, qkv, grad)
    mean = qkv[:, :, 2].double().mean(1).expand(1, tokens, -1, -1).flatten(2)
    atol = 1e-5 if dtype == torch.float32 else 4e-3
    torch.testing.assert_close(out.double(), mean, rtol=0, atol=atol)
    assert dqkv.isfinite().all()
    dv = grad.double().mean(1).expand(1, tokens, -1)
    # an lse of 1e4 is known to 1e-3
    torch.testing.assert_close(dqkv[:, :, 2].flatten(2).double(), dv, rtol=1e-2, atol=2e-3)


@pytest.mark.parametrize(
    "shape", [(3, 17, 3, 2, 32), (3, 70, 3, 2, 96), (3, 300, 3, 1, 64)], ids=["N17", "N70", "N300"]
)
def test_attention_of_an_image_ignores_other_images(shape: tuple[int, ...]) -> None:
    """The other images hold NaN, also where a block reaches past the last token or past a head."""
    qkv, grad = make_inputs(shape, torch.bfloat16)
    alone = slice(1, 2)
    expected = run(attention, qkv[alone], grad[alone])
    for other in (0, 2):
        qkv[other] = float("nan")
        grad[other] = float("nan")
    for actual, wanted in zip(run(attention, qkv, grad), expected, strict=True):
        assert torch.equal(actual[alone], wanted)


def test_attention_of_a_head_ignores_other_heads(launches_of_16_bits: None) -> None:
    qkv, grad = make_inputs((1, 70, 3, 3, 96))
    expected = run(attention, qkv, grad)
    qkv[:, :, :, [0, 2]] = float("nan")
    out, dqkv = run(attention, qkv, grad)
    assert torch.equal(out[..., 96:192], expected[0][..., 96:192])
    assert torch.equal(dqkv[:, :, :, 1], expected[1][:, :, :, 1])


@pytest.mark.parametrize("shape", [SHAPES["N198-D64"], SHAPES["N257-D64"]], ids=["whole", "pair"])
def test_attention_is_deterministic(shape: tuple[int, ...]) -> None:
    inputs = make_inputs(shape, torch.bfloat16)
    for first, second in zip(run(attention, *inputs), run(attention, *inputs), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("size", module.HEAD_DIMS)
def test_backward_of_deit_is_one_kernel_on_sm_90(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastdeit.kernels.launch_configs.arch", lambda device: 90)
    assert find_form("attention_bwd", torch.device(DEVICE), D=size, N=198) == "whole"


# the forms that the table does not name, each forward with a backward; two parts of the keys, of
# which the last is masked; three; a part that is too long for N; a head that is padded
OTHERS = [("resident", "ahead"), ("resident", "pair")]
OTHER_SHAPES = {
    "N198-D64": (1, 198, 3, 2, 64),
    "N197-D48": (2, 197, 3, 1, 48),
    "N150-D32": (1, 150, 3, 3, 32),
    "N50-D32": (3, 50, 3, 1, 32),
}


@pytest.fixture(params=OTHERS, ids="-".join)
def other_forms(request: pytest.FixtureRequest, launches_of_16_bits: None) -> Iterator[None]:
    forward, backward = request.param
    # the form "ahead" reads the inputs of the program after the next, past the last ones
    ahead = {"AHEAD": 2} if backward == "ahead" else {}
    with use_form("attention_fwd", forward), use_form("attention_bwd", backward, ahead):
        yield


@pytest.mark.skipif(not INTERPRETED, reason="on a GPU these forms are for 16 bits")
@pytest.mark.parametrize("shape", OTHER_SHAPES.values(), ids=OTHER_SHAPES)
def test_other_forms_equal_the_formula(shape: tuple[int, ...], other_forms: None) -> None:
    inputs = make_inputs(shape)
    found = run(lambda qkv: attention_triton(qkv)[0], *inputs)
    assert_right(found, expect(*inputs))


@pytest.mark.parametrize("dtype", HALVES.values(), ids=HALVES)
def test_other_forms_have_at_most_twice_the_error_of_torch(
    dtype: torch.dtype, other_forms: None
) -> None:
    inputs = make_inputs(SHAPES["N198-D64"], dtype)
    pairs = zip(run(attention, *inputs), run(attention_reference, *inputs), strict=True)
    for (ours, theirs), wanted in zip(pairs, expect(*inputs), strict=True):
        assert error(ours, wanted) <= 2 * error(theirs, wanted) + 1e-6


def test_fetching_ahead_changes_no_bit() -> None:
    inputs = make_inputs((3, 198, 3, 1, 64), torch.bfloat16)
    expected = run(attention, *inputs)
    with use_form("attention_bwd", "ahead", {"AHEAD": 1}):
        for actual, wanted in zip(run(attention, *inputs), expected, strict=True):
            assert torch.equal(actual, wanted)


@pytest.mark.parametrize(
    ("op", "form", "message"),
    [
        ("attention_fwd", "resident", "at most 256 tokens .got 300."),
        ("attention_bwd", "whole", "BLOCK_M must be at least 300"),
    ],
)
def test_form_that_cannot_hold_an_image_is_refused(op: str, form: str, message: str) -> None:
    inputs = make_inputs((1, 300, 3, 1, 64), torch.bfloat16)
    with use_form(op, form), pytest.raises(ValueError, match=message):
        run(attention, *inputs)


def test_parts_of_the_keys_hold_every_key_and_little_more() -> None:
    for tokens in range(1, MAX_RESIDENT + 1):
        parts = [width for width in split_keys(tokens) if width]
        assert all(width & (width - 1) == 0 and TAIL <= width <= 128 for width in parts)
        assert sum(parts[:-1]) < tokens <= sum(parts) <= max(TAIL, 2 * tokens)
    assert split_keys(198) == split_keys(197) == (128, 64, 16)


def test_narrow_last_block_holds_every_token_that_is_left() -> None:
    for block in (16, 32, 64, 128, 256):
        for tokens in range(1, module.MAX_TOKENS + 1):
            width = tail(tokens, block, 16)
            assert width in (0, TAIL) and (not width or 0 < tokens % block <= width)
    assert tail(198, 64, 16) == tail(578, 64, 16) == TAIL and tail(198, 64, 32) == 0


def test_attention_accepts_strided_views() -> None:
    """The input is a slice of the columns, the gradient an expanded tensor."""
    qkv, _ = make_inputs(SMALL)
    grad = torch.ones(1, 1, 1, device=DEVICE).expand(2, 19, 64)
    wide = torch.cat([qkv, qkv], dim=-2)[:, :, :, 1:3]
    assert not wide.is_contiguous()
    expected = run(attention, wide.contiguous(), grad.contiguous())
    for actual, wanted in zip(run(attention, wide, grad), expected, strict=True):
        assert torch.equal(actual, wanted)


@pytest.mark.parametrize("shape", [(0, 17, 3, 2, 64), (2, 17, 3, 0, 64)], ids=["B0", "H0"])
def test_attention_of_an_empty_batch_is_empty(shape: tuple[int, ...]) -> None:
    out, dqkv = run(attention, *make_inputs(shape))
    assert out.shape == (shape[0], 17, shape[3] * 64) and dqkv.shape == shape
    assert attention_weights(draw(shape), [])[1].shape == (shape[0], 0, 17, 17)


def test_operators_pass_opcheck() -> None:
    qkv, grad = make_inputs(SMALL)
    out, lse = attention_triton(qkv)
    ops = torch.ops.fastdeit
    torch.library.opcheck(ops.attention.default, (qkv.clone().requires_grad_(),))
    torch.library.opcheck(ops.attention.default, (qkv.bfloat16(),))
    torch.library.opcheck(ops.attention_bwd.default, (qkv, out, lse, grad))
    torch.library.opcheck(ops.attention_weights.default, (qkv, lse, [1, 0]))


def test_lse_is_the_base_2_log_of_the_sum() -> None:
    qkv, _ = make_inputs(SMALL)
    q, k, _ = qkv.double().unbind(2)
    scores = torch.einsum("bnhd,bmhd->bhnm", q, k) / 32**0.5
    expected = scores.logsumexp(-1) / torch.tensor(2.0).log()
    torch.testing.assert_close(attention_triton(qkv)[1], expected.float(), rtol=1e-5, atol=1e-5)


def test_compiled_attention_calls_the_kernels(launches_of_16_bits: None) -> None:
    inputs = make_inputs(SMALL)
    graphs: list[str] = []

    def keep(graph: torch.fx.GraphModule, _: Any) -> torch.fx.GraphModule:
        graphs.append(graph.code)
        return graph

    compiled = torch.compile(lambda qkv: 2 * attention(qkv), backend=keep, fullgraph=True)
    out, dqkv = run(compiled, *inputs)
    expected = run(lambda qkv: 2 * attention(qkv), *inputs)
    assert "fastdeit.attention" in graphs[0]
    assert torch.equal(out, expected[0]) and torch.equal(dqkv, expected[1])


def test_compiled_backward_equals_eager() -> None:
    inputs = make_inputs(SMALL)
    compiled = torch.compile(attention, backend="aot_eager", fullgraph=True)
    for actual, wanted in zip(run(compiled, *inputs), run(attention, *inputs), strict=True):
        assert torch.equal(actual, wanted)


OUTSIDE = {
    "tokens": ((1, 1025, 3, 1, 32), torch.float32, "1024 tokens"),
    "size": ((2, 5, 3, 2, 24), torch.float32, "32, 64, 96, 128"),
    "dtype": ((1, 5, 3, 1, 32), torch.float64, "fp32"),
}


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize(("shape", "dtype", "reason"), OUTSIDE.values(), ids=OUTSIDE)
def test_unsupported_input_warns_once_and_uses_the_reference(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    reason: str,
    compiled: bool,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_warned", set())
    qkv = draw(shape, dtype)
    function = torch.compile(attention, backend="eager", fullgraph=True) if compiled else attention
    with caplog.at_level(logging.WARNING, logger=module.__name__):
        for _ in range(2):
            assert torch.equal(function(qkv), attention_reference(qkv))
    assert len(caplog.records) == 1 and reason in caplog.text


def test_reference_backend_does_not_warn(caplog: pytest.LogCaptureFixture) -> None:
    qkv = draw((2, 5, 3, 2, 24))
    with backend.use_backend("reference"):
        assert torch.equal(attention(qkv), attention_reference(qkv))
    assert not caplog.records


@pytest.mark.parametrize(
    "shape", [(2, 19, 3, 3, 32), (1, 70, 3, 3, 96), (1, 198, 3, 3, 64)], ids=["N19", "N70", "N198"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_attention_weights_equal_the_formula(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    qkv = draw(shape, dtype)
    with interpreter.poisoned_memory():
        out, weights = attention_weights(qkv, [2, 0])
    assert weights.dtype == torch.float32 and torch.equal(out, attention(qkv))
    expected = weights_by_hand(qkv)[:, [2, 0]].float()
    torch.testing.assert_close(weights, expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]), rtol=1e-5, atol=0)


def test_attention_weights_reference_equals_the_formula() -> None:
    qkv = draw((2, 19, 3, 3, 24))
    out, weights = attention_weights_reference(qkv, [1])
    torch.testing.assert_close(weights, weights_by_hand(qkv)[:, [1]].float())
    torch.testing.assert_close(out, attention_by_hand(qkv).float(), rtol=1e-5, atol=1e-5)


def test_unsupported_attention_weights_use_the_reference() -> None:
    qkv = draw((1, 5, 3, 2, 24)).requires_grad_()
    out, weights = attention_weights(qkv, [1])
    assert torch.equal(weights, attention_weights_reference(qkv.detach(), [1])[1])
    assert not out.requires_grad and not weights.requires_grad


def test_attention_weights_have_no_gradient() -> None:
    out, weights = attention_weights(draw(SMALL).requires_grad_(), [0])
    assert not out.requires_grad and not weights.requires_grad


@pytest.mark.parametrize("head", [-1, 2])
def test_attention_weights_reject_a_missing_head(head: int) -> None:
    with pytest.raises(ValueError, match=rf"heads must be 0 to 1 \(got {head}\)"):
        attention_weights(draw(SMALL), [0, head])


def test_attention_rejects_another_packing() -> None:
    for wrong in (torch.zeros(2, 3, 5, 2, 8), torch.zeros(2, 3, 32)):
        with pytest.raises(ValueError, match="must be"):
            attention(wrong)
        with pytest.raises(ValueError, match="must be"):
            attention_weights(wrong, [0])


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("heads", [3, 6, 12])
@pytest.mark.parametrize("tokens", [197, 198, 577, 578])
def test_attention_at_full_size(tokens: int, heads: int) -> None:
    inputs = make_inputs((64, tokens, 3, heads, 64), torch.bfloat16)
    assert_exact_as_torch(inputs)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("forms", OTHERS, ids="-".join)
def test_other_forms_at_full_size(forms: tuple[str, str]) -> None:
    inputs = make_inputs((64, 198, 3, 6, 64), torch.bfloat16)
    with use_form("attention_fwd", forms[0]), use_form("attention_bwd", forms[1]):
        assert_exact_as_torch(inputs)


def assert_exact_as_torch(inputs: Pair) -> None:
    found = run(attention, *inputs)
    theirs = run(attention_reference, *inputs)
    expected = run(attention_reference, *(x.float() for x in inputs))
    for ours, torchs, wanted in zip(found, theirs, expected, strict=True):
        assert error(ours, wanted.double()) <= 2 * error(torchs, wanted.double())


@pytest.mark.gpu
@needs_gpu
def test_attention_handles_more_than_2_to_the_31_elements() -> None:
    qkv = torch.empty(5000, 198, 3, 12, 64, dtype=torch.bfloat16, device="cuda")
    last, grad = make_inputs((1, 198, 3, 12, 64), torch.bfloat16)
    qkv.copy_(last)
    out, dqkv = run(attention, qkv, grad.expand(5000, -1, -1))
    expected = run(attention, last, grad)
    assert torch.equal(out[-1:], expected[0]) and torch.equal(dqkv[-1:], expected[1])


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize(
    "shape", [SHAPES["N198-D64"], SHAPES_384["N578-D64"]], ids=["whole", "pair"]
)
def test_attention_in_a_cuda_graph_and_without_a_sync(shape: tuple[int, ...]) -> None:
    qkv, grad = make_inputs(shape, torch.bfloat16)

    def run_all() -> list[torch.Tensor]:
        out, lse = attention_triton(qkv)
        dqkv = attention_bwd_triton(qkv, out, lse, grad)
        weights = attention_weights_triton(qkv, lse, [0])
        return [out, dqkv, weights]

    run_all()  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        expected = run_all()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run_all()
    graph.replay()
    for actual, wanted in zip(captured, expected, strict=True):
        assert torch.equal(actual, wanted)
