"""`gelu`: the reference against the formula in float64; the kernels against both, over every value
of the 16-bit types.

.venv/bin/python -m pytest tests/kernels/test_gelu.py, about 8 s
"""

import math
from collections.abc import Iterator

import pytest
import torch

from fastdeit.kernels import backend
from fastdeit.kernels import gelu as module
from fastdeit.kernels.gelu import gelu, gelu_bwd_triton, gelu_reference
from tests.kernels import interpreter
from tests.kernels.interpreter import DEVICE, INTERPRETED
from tests.kernels.properties import given, settings, st

interpreter.correct()
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
SHAPES = {
    "N20-D768": (2, 20, 768),
    "ragged": (3, 7, 100),
    "two-blocks": (5, 300),
    "one": (1, 1),
    "empty": (0, 7, 64),
}


@pytest.fixture(autouse=True)
def kernels() -> Iterator[None]:
    """Run the kernels on the CPU too."""
    with backend.use_backend("triton"):
        yield


def tail(z: torch.Tensor) -> torch.Tensor:
    """Compute Φ(z) in float64, without the cancellation of 1 + erf."""
    return 0.5 * torch.erfc(-z.double() / math.sqrt(2))


def gelu_by_hand(z: torch.Tensor) -> torch.Tensor:
    return z.double() * tail(z)


def derivative_by_hand(z: torch.Tensor) -> torch.Tensor:
    return tail(z) + z.double() * torch.exp(-z.double().square() / 2) / math.sqrt(2 * math.pi)


def make_inputs(
    shape: tuple[int, ...], dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return x, bias, and a cotangent of the shape of x."""
    generator = torch.Generator().manual_seed(sum(shape))
    x, dy = 2 * torch.randn((2, *shape), generator=generator)
    bias = torch.randn(shape[-1], generator=generator)
    return x.to(DEVICE, dtype), bias.to(DEVICE, dtype), dy.to(DEVICE, dtype)


def gradients(
    x: torch.Tensor, bias: torch.Tensor | None, dy: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Return y, dx and, with a bias, dbias."""
    leaves = [tensor.detach().requires_grad_() for tensor in (x, bias) if tensor is not None]
    with interpreter.poisoned_memory():
        y = gelu(*leaves)
        return y.detach(), *torch.autograd.grad(y, leaves, dy)


def ulp(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the spacing of a dtype at each value; for subnormal values that of the smallest
    normal one."""
    exponent = torch.floor(torch.log2(values.abs().clamp_min(torch.finfo(dtype).tiny)))
    return torch.exp2(exponent) * torch.finfo(dtype).eps


def every_value(dtype: torch.dtype) -> torch.Tensor:
    """Return all finite values of a 16-bit type, (n, 256)."""
    values = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    return values[values.isfinite()].view(-1, 256).to(DEVICE)


@pytest.mark.parametrize("biased", [True, False], ids=["bias", "plain"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_reference_equals_the_formula(shape: tuple[int, ...], biased: bool) -> None:
    x, bias, _ = make_inputs(shape)
    z = x.double() + bias.double() if biased else x.double()
    torch.testing.assert_close(gelu_reference(x, bias if biased else None), gelu_by_hand(z).float())


@pytest.mark.parametrize("biased", [True, False], ids=["bias", "plain"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_gelu_in_fp32_equals_the_formula(shape: tuple[int, ...], biased: bool) -> None:
    x, bias, dy = make_inputs(shape)
    z = x.double() + bias.double() if biased else x.double()
    y, dx, *dbias = gradients(x, bias if biased else None, dy)
    truth = dy.double() * derivative_by_hand(z)
    torch.testing.assert_close(y, gelu_by_hand(z).float())
    torch.testing.assert_close(dx, truth.float())
    if biased:
        torch.testing.assert_close(dbias[0], truth.reshape(-1, shape[-1]).sum(0).float())


@pytest.mark.parametrize("biased", [True, False], ids=["bias", "plain"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("dtype", HALVES.values(), ids=HALVES)
def test_gelu_rounds_once_in_16_bits(
    shape: tuple[int, ...], dtype: torch.dtype, biased: bool
) -> None:
    x, bias, dy = make_inputs(shape, dtype)
    z = x.double() + bias.double() if biased else x.double()
    y, dx, *dbias = gradients(x, bias if biased else None, dy)
    truth = dy.double() * derivative_by_hand(z)
    assert y.dtype == dx.dtype == dtype
    assert_rounded(y, gelu_by_hand(z), 1e-6)
    # dx crosses zero, where the polynomial's 5e-6 is no longer small against dx itself
    assert_rounded(dx, truth, 5e-6 * dy.double().abs())
    if biased:
        rows = truth.reshape(-1, shape[-1])
        assert dbias[0].dtype == dtype
        assert_rounded(dbias[0], rows.sum(0), 1e-5 * (1 + rows.abs().sum(0)))


def assert_rounded(actual: torch.Tensor, truth: torch.Tensor, atol: torch.Tensor | float) -> None:
    """Assert an error of at most half an ulp for rounding, 2 % of an ulp for the polynomial, and
    atol."""
    excess = (actual.double() - truth).abs() - 0.52 * ulp(truth, actual.dtype) - atol
    assert (excess <= 0).all()


@pytest.mark.parametrize(
    ("dtype", "most"), [(torch.bfloat16, 0.514), (torch.float16, 0.511)], ids=HALVES
)
def test_gelu_of_every_16_bit_value_is_within_half_an_ulp(dtype: torch.dtype, most: float) -> None:
    x = every_value(dtype)
    truth = gelu_by_hand(x)
    # below, the tail is not a normal number of fp32, and the GPU's exp2 gives 0
    normal = truth.abs() > 2e-37
    with interpreter.poisoned_memory():
        y = gelu(x)
    error = (y.double() - truth).abs() / ulp(truth, dtype)
    assert error[normal].max() < most
    # the polynomial moves one value in 200 to the neighbour of the right one
    assert (y != truth.to(dtype))[normal].sum() < x.numel() / 200
    assert y[~normal].double().abs().max() <= 2e-37
    erf = torch.nn.functional.gelu(x)
    assert error[normal].mean() < ((erf.double() - truth).abs() / ulp(truth, dtype))[normal].mean()


@pytest.mark.parametrize("dtype", HALVES.values(), ids=HALVES)
def test_derivative_of_every_16_bit_value_equals_the_formula(dtype: torch.dtype) -> None:
    x = every_value(dtype)
    _, dx = gradients(x, None, torch.ones_like(x))
    assert_rounded(dx, derivative_by_hand(x), 5e-6)


@pytest.mark.parametrize("bias_dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_bias_may_have_another_dtype_than_x(dtype: torch.dtype, bias_dtype: torch.dtype) -> None:
    x, _, dy = make_inputs(SHAPES["ragged"], dtype)
    bias = make_inputs(SHAPES["ragged"], bias_dtype)[1]
    y, dx, dbias = gradients(x, bias, dy)
    assert (y.dtype, dx.dtype, dbias.dtype) == (dtype, dtype, bias_dtype)
    z = x.double() + bias.double()
    assert_rounded(y, gelu_by_hand(z), 1e-6)
    assert_rounded(gelu_reference(x, bias), gelu_by_hand(z), 1e-6)
    rows = (dy.double() * derivative_by_hand(z)).flatten(0, 1)
    assert_rounded(dbias, rows.sum(0), 1e-5 * rows.abs().sum(0))


def test_infinities_have_limits_and_nan_propagates() -> None:
    for dtype in HALVES.values():
        x = torch.tensor([[math.inf, -math.inf, math.nan]], dtype=dtype, device=DEVICE)
        y, dx = gradients(x, None, torch.ones_like(x))
        assert y[0, 0] == math.inf and y[0, 1] == 0 and y[0, 2].isnan()
        assert dx[0, 0] == 1 and dx[0, 1] == 0 and dx[0, 2].isnan()


def test_gradient_equals_finite_differences() -> None:
    x, bias, dy = make_inputs(SHAPES["ragged"])
    _, dx, dbias = gradients(x, bias, dy)
    generator = torch.Generator().manual_seed(3)
    # a random direction that leans uphill, so that the slope is large beside its rounding error
    step = dx + torch.randn(dx.shape, generator=generator).to(DEVICE)
    bias_step = dbias + torch.randn(dbias.shape, generator=generator).to(DEVICE)
    bias_step /= bias_step.abs().max()
    h = 2**-9
    ahead = gelu(x + h * step, bias + h * bias_step).double()
    behind = gelu(x - h * step, bias - h * bias_step).double()
    slope = ((ahead - behind) * dy.double()).sum() / (2 * h)
    along = (dx.double() * step.double()).sum() + (dbias.double() * bias_step.double()).sum()
    torch.testing.assert_close(along, slope, rtol=1e-4, atol=0)


def few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Launch two programs a column block, so that each loops several times on a small tensor."""
    table = module.find_launch

    def small_launch(op: str, *args: object, D: int, **kwargs: object) -> dict[str, int]:
        launch = table(op, *args, D=D, **kwargs)  # type: ignore[arg-type]
        if op == "gelu_bwd":
            launch["PROGRAMS"] = 2 * -(-D // launch["BLOCK_D"])
        return launch

    monkeypatch.setattr(module, "find_launch", small_launch)


@pytest.mark.parametrize("rows", [8, 16, 17, 61])
def test_one_program_processes_several_blocks_of_rows(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    few_programs(monkeypatch)
    x, bias, dy = make_inputs((rows, 300))
    _, dx, dbias = gradients(x, bias, dy)
    truth = dy.double() * derivative_by_hand(x.double() + bias.double())
    torch.testing.assert_close(dx, truth.float())
    torch.testing.assert_close(dbias, truth.sum(0).float())


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    rows=st.integers(1, 40), dim=st.integers(1, 600), dtype=st.sampled_from(list(DTYPES.values()))
)
def test_any_shape_equals_the_formula(rows: int, dim: int, dtype: torch.dtype) -> None:
    x, bias, dy = make_inputs((rows, dim), dtype)
    y, dx, dbias = gradients(x, bias, dy)
    z = x.double() + bias.double()
    truth = dy.double() * derivative_by_hand(z)
    assert_rounded(y, gelu_by_hand(z), 1e-6)
    assert_rounded(dx, truth, 5e-6 * dy.double().abs())
    assert_rounded(dbias, truth.sum(0), 1e-5 * (1 + truth.abs().sum(0)))


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("biased", [True, False], ids=["bias", "plain"])
def test_backward_computes_the_forwards_bits_again(dtype: torch.dtype, biased: bool) -> None:
    x, row, dy = make_inputs(SHAPES["two-blocks"], dtype)
    bias = row if biased else None
    with interpreter.poisoned_memory():
        dx, dbias, y = gelu_bwd_triton(dy, x, bias, True)
        expected = gelu_bwd_triton(dy, x, bias)
    assert torch.equal(y, gelu(x, bias)) and expected[2].numel() == 0
    assert torch.equal(dx, expected[0]) and torch.equal(dbias, expected[1])


def test_result_is_deterministic(monkeypatch: pytest.MonkeyPatch) -> None:
    few_programs(monkeypatch)
    inputs = make_inputs((61, 300), torch.bfloat16)
    assert all(
        torch.equal(a, b) for a, b in zip(gradients(*inputs), gradients(*inputs), strict=True)
    )


def test_strided_arguments_are_accepted() -> None:
    x, bias, dy = make_inputs((6, 4, 100))
    x, dy = x.transpose(0, 1), dy.sum(1)[:1].expand(4, 6, 100)
    truth = dy.double() * derivative_by_hand(x.double() + bias.double())
    y, dx, dbias = gradients(x, bias, dy)
    torch.testing.assert_close(y, gelu_reference(x, bias))
    torch.testing.assert_close(dx, truth.float())
    torch.testing.assert_close(dbias, truth.sum((0, 1)).float())


@pytest.mark.parametrize("biased", [True, False], ids=["bias", "plain"])
def test_gelu_passes_opcheck(biased: bool) -> None:
    x, bias, dy = make_inputs(SHAPES["ragged"])
    for arguments in ((dy, x, bias if biased else None), (dy, x, bias if biased else None, True)):
        torch.library.opcheck(torch.ops.fastdeit.gelu_bwd.default, arguments)
    leaves = (x.requires_grad_(), bias.requires_grad_() if biased else None)
    torch.library.opcheck(torch.ops.fastdeit.gelu.default, leaves)


def test_auto_uses_the_reference_on_the_cpu() -> None:
    x, bias, _ = make_inputs(SHAPES["ragged"])
    x, bias = x.cpu().double(), bias.cpu().double()
    with backend.use_backend("auto"):
        assert torch.equal(gelu(x, bias), gelu_reference(x, bias))


def test_gelu_rejects_wrong_shapes_and_dtypes() -> None:
    x, bias, _ = make_inputs(SHAPES["ragged"])
    with pytest.raises(ValueError, match="must be"):
        gelu(x, bias[:-1])
    with pytest.raises(ValueError, match="float64"):
        gelu(x.double(), bias)
    with pytest.raises(ValueError, match="float64"):
        gelu(x, bias.double())


@pytest.mark.gpu
@pytest.mark.skipif(INTERPRETED, reason="needs a CUDA device")
def test_gelu_is_captured_in_a_cuda_graph() -> None:
    x, bias, dy = make_inputs((64, 198, 768), torch.bfloat16)
    leaves = (x.requires_grad_(), bias.requires_grad_())
    torch.cuda.set_sync_debug_mode("error")
    try:
        expected = torch.autograd.grad(gelu(*leaves), leaves, dy)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = torch.autograd.grad(gelu(*leaves), leaves, dy)
        graph.replay()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True))
