"""`norm` and `add_norm`: the reference against the formula in float64; the kernels against it in
every dtype.

.venv/bin/python -m pytest tests/kernels/test_norm.py, about 15 s
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch

from fastdeit.kernels import backend, norm_bwd
from fastdeit.kernels import norm as module
from fastdeit.kernels.norm import add_norm, add_norm_reference, norm, norm_reference
from tests.kernels import interpreter
from tests.kernels.interpreter import DEVICE, INTERPRETED
from tests.kernels.properties import given, settings, st

interpreter.correct()
EPS = 1e-6
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
SHAPES = {
    "N20-D192": (2, 20, 192),
    "D384": (2, 3, 384),
    "ragged": (3, 7, 100),
    "one": (1, 1, 4),
    "D1": (2, 3, 1),
}
ALL = ("scale", "gamma", "branch_bias")
FACTORS = {
    "plain": (),
    "scale": ("scale",),
    "gamma": ("gamma",),
    "bias": ("branch_bias",),
    "all": ALL,
}
GRADIENTS = ("x", "branch", "weight", "bias", "gamma", "branch_bias")


class Inputs(NamedTuple):
    x: torch.Tensor
    branch: torch.Tensor
    scale: torch.Tensor | None
    gamma: torch.Tensor | None
    weight: torch.Tensor
    bias: torch.Tensor
    branch_bias: torch.Tensor | None
    dx_new: torch.Tensor | None
    dy: torch.Tensor | None


@pytest.fixture(autouse=True)
def kernels() -> Iterator[None]:
    """Run the kernels on the CPU too."""
    with backend.use_backend("triton"):
        yield


def make_inputs(
    shape: tuple[int, ...],
    factors: tuple[str, ...] = ALL,
    dtype: torch.dtype = torch.float32,
    weight_dtype: torch.dtype | None = None,
) -> Inputs:
    """Return the inputs of `add_norm`; the branch of every other sample is dropped."""
    generator = torch.Generator().manual_seed(sum(shape))
    tensors = torch.randn((4, *shape), generator=generator).to(DEVICE, dtype)
    rows = torch.randn((4, shape[-1]), generator=generator).to(DEVICE, weight_dtype or dtype)
    x, branch, dx_new, dy = (tensor.clone() for tensor in tensors)
    gamma, weight, bias, branch_bias = (row.clone() for row in rows)
    scale = (torch.arange(shape[0], device=DEVICE) % 2) / 0.9
    return Inputs(
        x=x,
        branch=branch,
        scale=scale if "scale" in factors else None,
        gamma=gamma if "gamma" in factors else None,
        weight=weight,
        bias=bias,
        branch_bias=branch_bias if "branch_bias" in factors else None,
        dx_new=dx_new,
        dy=dy,
    )


def norm_by_hand(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    x = x.double()
    centred = x - x.mean(-1, keepdim=True)
    variance = centred.square().mean(-1, keepdim=True)
    return centred / (variance + EPS).sqrt() * weight.double() + bias.double()


def sum_by_hand(
    x: torch.Tensor,
    branch: torch.Tensor,
    scale: torch.Tensor | None,
    gamma: torch.Tensor | None,
    branch_bias: torch.Tensor | None,
) -> torch.Tensor:
    branch = branch.double()
    if branch_bias is not None:
        branch = branch + branch_bias.double()
    if scale is not None:
        branch = branch * scale.double()[:, None, None]
    return x.double() + (branch if gamma is None else branch * gamma.double())


def copy_leaves(inputs: Inputs, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    """Return copies of the tensors that have a gradient, in their own or the given dtype."""
    leaves = {}
    for name in GRADIENTS:
        tensor = getattr(inputs, name)
        if tensor is not None:
            leaves[name] = tensor.detach().to(dtype or tensor.dtype).requires_grad_()
    return leaves


def differentiate(
    inputs: Inputs, leaves: dict[str, torch.Tensor], x_new: torch.Tensor, y: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Return x_new, y and the gradients of the leaves by their names."""
    outs = []
    cotangents = []
    for out, cotangent in ((x_new, inputs.dx_new), (y, inputs.dy)):
        if cotangent is not None:
            outs.append(out)
            cotangents.append(cotangent.to(out.dtype))
    found = torch.autograd.grad(outs, list(leaves.values()), cotangents, allow_unused=True)
    return {"x_new": x_new.detach(), "y": y.detach(), **dict(zip(leaves, found, strict=True))}


def by_hand(inputs: Inputs, stored: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return results and gradients in float64.

    y is computed from the sum as it was stored: a sum halfway between two values of the dtype may
    be rounded to either.
    """
    leaves = copy_leaves(inputs, torch.float64)
    rows = (leaves.get("gamma"), leaves.get("branch_bias"))
    x_new = sum_by_hand(leaves["x"], leaves["branch"], inputs.scale, *rows)
    rounded = x_new + (stored.double() - x_new).detach()
    y = norm_by_hand(rounded, leaves["weight"], leaves["bias"])
    return differentiate(inputs, leaves, x_new, y)


def run(inputs: Inputs) -> dict[str, torch.Tensor]:
    """Return results and gradients of `add_norm`."""
    leaves = copy_leaves(inputs)
    with interpreter.poisoned_memory():
        x_new, y = add_norm(
            leaves["x"],
            leaves["branch"],
            inputs.scale,
            leaves["weight"],
            leaves["bias"],
            EPS,
            leaves.get("gamma"),
            leaves.get("branch_bias"),
        )
        return differentiate(inputs, leaves, x_new, y)


def assert_equal_by_hand(inputs: Inputs, tolerance: float = 1e-5) -> None:
    """Assert that every result is within half an ulp and the tolerance of the float64 one.

    The tolerance is relative to each element and to the largest.
    """
    found = run(inputs)
    expected = by_hand(inputs, found["x_new"])
    for name, truth in expected.items():
        if truth is None:
            assert found[name] is None, name
            continue
        actual = found[name]
        assert actual.dtype == getattr(inputs, name, inputs.x).dtype, name
        rounding = torch.finfo(actual.dtype).eps / 2 if actual.dtype != torch.float32 else 0.0
        error = (actual.double() - truth).abs() - (tolerance + rounding) * truth.abs()
        assert (error <= tolerance * truth.abs().max().clamp_min(1)).all(), (name, error.max())


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_norm_reference_equals_the_formula(shape: tuple[int, ...]) -> None:
    x, _, _, _, weight, bias, *_ = make_inputs(shape)
    y = norm_reference(x, weight, bias, EPS)
    expected = norm_by_hand(x, weight, bias).float()
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("factors", FACTORS.values(), ids=FACTORS)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_add_norm_reference_equals_the_formula(
    dtype: torch.dtype, factors: tuple[str, ...]
) -> None:
    inputs = make_inputs(SHAPES["ragged"], factors, dtype)
    x, branch, scale, gamma, weight, bias, branch_bias, _, _ = inputs
    x_new, y = add_norm_reference(x, branch, scale, weight, bias, EPS, gamma, branch_bias)
    assert x_new.dtype == y.dtype == dtype
    expected = sum_by_hand(x, branch, scale, gamma, branch_bias)
    torch.testing.assert_close(x_new, expected.to(dtype))
    # statistics in fp32, of the rounded sum: only the result is rounded
    half_ulp = torch.finfo(dtype).eps / 2
    truth = norm_by_hand(x_new, weight, bias)
    assert ((y.double() - truth).abs() <= 1.01 * half_ulp * truth.abs() + 1e-5).all()


@pytest.mark.parametrize("factors", FACTORS.values(), ids=FACTORS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_add_norm_in_fp32_equals_the_formula(
    shape: tuple[int, ...], factors: tuple[str, ...]
) -> None:
    assert_equal_by_hand(make_inputs(shape, factors))


@pytest.mark.parametrize("factors", FACTORS.values(), ids=FACTORS)
@pytest.mark.parametrize("dtype", HALVES.values(), ids=HALVES)
def test_add_norm_in_16_bits_rounds_each_result_once(
    dtype: torch.dtype, factors: tuple[str, ...]
) -> None:
    assert_equal_by_hand(make_inputs(SHAPES["N20-D192"], factors, dtype))


@pytest.mark.parametrize("weight_dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_weights_may_have_another_dtype_than_x(
    dtype: torch.dtype, weight_dtype: torch.dtype
) -> None:
    inputs = make_inputs(SHAPES["ragged"], dtype=dtype, weight_dtype=weight_dtype)
    assert_equal_by_hand(inputs)
    x, _, _, _, weight, bias, *_ = inputs
    expected = norm_by_hand(x, weight, bias).to(dtype)
    rtol = 1.01 * torch.finfo(dtype).eps
    for y in (norm(x, weight, bias, EPS), norm_reference(x, weight, bias, EPS)):
        torch.testing.assert_close(y, expected, rtol=rtol, atol=1e-5)


@pytest.mark.parametrize("missing", ["dx_new", "dy"])
@pytest.mark.parametrize("factors", FACTORS.values(), ids=FACTORS)
def test_one_of_the_outputs_may_be_unused(factors: tuple[str, ...], missing: str) -> None:
    unused: dict[str, Any] = {missing: None}
    assert_equal_by_hand(make_inputs(SHAPES["ragged"], factors)._replace(**unused))


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("shape", [*SHAPES.values(), (5, 64), (9,)], ids=[*SHAPES, "rows", "row"])
def test_norm_equals_the_formula(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    inputs = make_inputs(shape, (), dtype)
    assert inputs.dy is not None
    x, weight, bias = leaves = [
        tensor.requires_grad_() for tensor in (inputs.x, inputs.weight, inputs.bias)
    ]
    with interpreter.poisoned_memory():
        y = norm(x, weight, bias, EPS)
        found = torch.autograd.grad(y, leaves, inputs.dy)
    x, weight, bias = wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
    truth = norm_by_hand(x, weight, bias)
    expected = torch.autograd.grad(truth, wide, inputs.dy.double())
    rtol = max(1e-5, 1.01 * torch.finfo(dtype).eps / 2)
    for actual, right in zip((y, *found), (truth, *expected), strict=True):
        assert actual.dtype == dtype
        torch.testing.assert_close(actual.detach().double(), right.detach(), rtol=rtol, atol=1e-5)


@pytest.mark.parametrize("dim", [192, 100])
def test_large_mean_loses_no_precision(dim: int) -> None:
    x, _, _, _, weight, bias, *_ = make_inputs((2, 9, dim))
    for large in (x + 1000, x / 100 - 30):
        y = norm(large, weight, bias, EPS)
        expected = norm_by_hand(large, weight, bias).float()
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)


def test_constant_row_gives_the_bias() -> None:
    x, _, _, _, weight, bias, *_ = make_inputs((4, 3, 192))
    values = torch.tensor([0.0, 1000.1, -30.0, 1e-30], device=DEVICE)
    y = norm(values[:, None, None].expand_as(x), weight, bias, EPS)
    torch.testing.assert_close(y, bias.expand_as(y), rtol=0, atol=1e-5)


def test_large_and_small_values_are_normalised() -> None:
    x, _, _, _, weight, bias, *_ = make_inputs((4, 5, 192))
    for factor in (1e15, 1e-2):
        y = norm(x * factor, weight, bias, EPS)
        expected = norm_by_hand(x * factor, weight, bias).float()
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)


def test_nan_stays_in_its_row() -> None:
    x, _, _, _, weight, bias, *_ = make_inputs((4, 3, 192))
    x[1, 1, 7] = torch.nan
    y = norm(x, weight, bias, EPS)
    assert y[1, 1].isnan().all() and y.isnan().sum() == 192


def test_gradients_equal_finite_differences() -> None:
    inputs = make_inputs(SHAPES["ragged"])
    assert inputs.dx_new is not None and inputs.dy is not None
    dx_new, dy = inputs.dx_new.double(), inputs.dy.double()
    found = run(inputs)
    generator = torch.Generator().manual_seed(3)
    steps = {}
    for name in GRADIENTS:
        # a random direction that leans uphill, so that the slope is large beside its rounding error
        step = found[name] + torch.randn(found[name].shape, generator=generator).to(DEVICE)
        steps[name] = step / step.abs().max()
    h = 2.0**-9

    def loss(sign: int) -> torch.Tensor:
        moved = {name: getattr(inputs, name) + sign * h * steps[name] for name in GRADIENTS}
        x_new, y = add_norm(
            moved["x"],
            moved["branch"],
            inputs.scale,
            moved["weight"],
            moved["bias"],
            EPS,
            moved["gamma"],
            moved["branch_bias"],
        )
        return (x_new.double() * dx_new + y.double() * dy).sum()

    along = sum((found[name].double() * steps[name]).sum() for name in GRADIENTS)
    torch.testing.assert_close(along, (loss(1) - loss(-1)) / (2 * h), rtol=1e-4, atol=0)


def few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Launch two backward programs, so that each loops several times on a small tensor."""
    table = norm_bwd.find_launch
    monkeypatch.setattr(
        norm_bwd, "find_launch", lambda *args, **kwargs: {**table(*args, **kwargs), "PROGRAMS": 2}
    )


@pytest.mark.parametrize(
    "shape", [(2, 8, 192), (3, 17, 192), (5, 13, 100)], ids=["even", "N17", "ragged"]
)
def test_one_program_processes_several_blocks_of_rows(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    few_programs(monkeypatch)
    for factors in FACTORS.values():
        assert_equal_by_hand(make_inputs(shape, factors))


def test_row_sums_loop_over_many_programs() -> None:
    # one row block each: three iterations of the loop that sums their parts
    assert_equal_by_hand(make_inputs((1, 300, 1030), ()))


@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    batch=st.integers(1, 4),
    tokens=st.integers(1, 9),
    dim=st.integers(1, 700),
    dtype=st.sampled_from(list(DTYPES.values())),
    factors=st.sampled_from(list(FACTORS.values())),
)
def test_any_shape_equals_the_formula(
    batch: int, tokens: int, dim: int, dtype: torch.dtype, factors: tuple[str, ...]
) -> None:
    inputs = make_inputs((batch, tokens, dim), factors, dtype)
    # rows of a few elements may be nearly constant: their large rstd magnifies fp32's rounding
    assert_equal_by_hand(inputs, 1e-5 if dim > 8 else 1e-3)


def test_empty_batch_gives_empty_outputs() -> None:
    found = run(make_inputs((0, 7, 64)))
    assert found["y"].shape == found["x"].shape == (0, 7, 64)
    assert all((found[name] == 0).all() for name in ("weight", "bias", "gamma", "branch_bias"))


def test_result_is_deterministic(monkeypatch: pytest.MonkeyPatch) -> None:
    few_programs(monkeypatch)
    inputs = make_inputs((3, 17, 100), dtype=torch.bfloat16)
    first, second = run(inputs), run(inputs)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_strided_arguments_are_accepted() -> None:
    inputs = make_inputs((6, 4, 100))
    assert inputs.dy is not None and inputs.dx_new is not None
    x, branch = (
        tensor.transpose(0, 1).contiguous().transpose(0, 1) for tensor in (inputs.x, inputs.branch)
    )
    dy = inputs.dy[:1].expand(6, 4, 100)
    dx_new = inputs.dx_new[..., :1].expand(6, 4, 100)
    assert_equal_by_hand(inputs._replace(x=x, branch=branch, dy=dy, dx_new=dx_new))


@pytest.mark.parametrize("wanted", GRADIENTS)
def test_one_gradient_alone_is_computed(wanted: str) -> None:
    inputs = make_inputs(SHAPES["ragged"])
    x, branch, scale, gamma, weight, bias, branch_bias, dx_new, dy = inputs
    leaf = getattr(inputs, wanted).requires_grad_()
    outs = add_norm(x, branch, scale, weight, bias, EPS, gamma, branch_bias)
    if wanted in ("weight", "bias"):
        outs[1].backward(dy)
    else:
        torch.autograd.backward(outs, [dx_new, dy])
    expected = by_hand(inputs, outs[0].detach())[wanted].float()
    torch.testing.assert_close(leaf.grad, expected, rtol=1e-5, atol=2e-5)
    assert all(tensor is None or tensor is leaf or tensor.grad is None for tensor in inputs)


@pytest.mark.parametrize("factors", FACTORS.values(), ids=FACTORS)
def test_add_norm_passes_opcheck(factors: tuple[str, ...]) -> None:
    inputs = make_inputs(SHAPES["ragged"], factors)
    x, branch, scale, gamma, weight, bias, branch_bias, dx_new, dy = inputs
    mean, rstd = torch.randn(2, *x.shape[:-1], device=DEVICE).abs()
    saved = (x, weight, mean, rstd, scale, gamma, None if gamma is None else branch, branch_bias)
    ops = torch.ops.fastdeit
    torch.library.opcheck(ops.add_norm_bwd.default, (dy, dx_new, *saved))
    for tensor in (x, branch, gamma, weight, bias, branch_bias):
        if tensor is not None:
            tensor.requires_grad_()
    rows = (weight, bias, EPS, branch_bias)
    torch.library.opcheck(ops.add_norm.default, (x, branch, scale, gamma, *rows))
    if not factors:
        torch.library.opcheck(ops.add_norm.default, (x, None, None, None, *rows))


def test_auto_uses_the_reference_on_the_cpu() -> None:
    inputs = make_inputs(SHAPES["ragged"], dtype=torch.float64)
    x, branch, scale, gamma, weight, bias, branch_bias, _, _ = (
        None if tensor is None else tensor.cpu() for tensor in inputs
    )
    assert x is not None and branch is not None and weight is not None and bias is not None
    rows = (weight, bias, EPS, gamma, branch_bias)
    expected = add_norm_reference(x, branch, scale, *rows)
    with backend.use_backend("auto"):
        assert all(map(torch.equal, add_norm(x, branch, scale, *rows), expected))
        assert torch.equal(norm(x, weight, bias, EPS), norm_reference(x, weight, bias, EPS))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"branch": torch.zeros(3, 1, 100)}, "do not fit"),
        ({"scale": torch.zeros(1)}, "do not fit"),
        ({"gamma": torch.zeros(1)}, "gamma"),
        ({"branch_bias": torch.zeros(1)}, "branch_bias"),
        ({"weight": torch.zeros(99)}, "must be"),
        ({"weight": torch.zeros(100, dtype=torch.bfloat16)}, "one dtype"),
        ({"x": torch.zeros(3, 7, 100, dtype=torch.float64)}, "float64"),
        ({"gamma": torch.zeros(100, dtype=torch.float64)}, "float64"),
        ({"branch_bias": torch.zeros(100, dtype=torch.float64)}, "float64"),
        ({"branch": torch.zeros(3, 7, 100, dtype=torch.bfloat16)}, "bfloat16"),
        ({"scale": torch.zeros(3, dtype=torch.bfloat16)}, "float32"),
    ],
)
def test_add_norm_rejects_wrong_arguments(change: dict[str, torch.Tensor], message: str) -> None:
    changed = {name: tensor.to(DEVICE) for name, tensor in change.items()}
    inputs = make_inputs(SHAPES["ragged"])._replace(**changed)
    x, branch, scale, gamma, weight, bias, branch_bias, _, _ = inputs
    with pytest.raises(ValueError, match=message):
        add_norm(x, branch, scale, weight, bias, EPS, gamma, branch_bias)


def test_norm_rejects_rows_that_are_too_long() -> None:
    x = torch.zeros(1, module.MAX_DIM + 1, device=DEVICE)
    row = torch.ones(module.MAX_DIM + 1, device=DEVICE)
    with pytest.raises(ValueError, match=str(module.MAX_DIM)):
        norm(x, row, row, EPS)


@pytest.mark.gpu
@pytest.mark.skipif(INTERPRETED, reason="needs a CUDA device")
@pytest.mark.parametrize("dim", [192, 384, 768])
def test_add_norm_is_captured_in_a_cuda_graph(dim: int) -> None:
    inputs = make_inputs((64, 198, dim), dtype=torch.bfloat16)
    x, branch, scale, _, weight, bias, branch_bias, dx_new, dy = inputs
    assert branch_bias is not None
    leaves = [tensor.requires_grad_() for tensor in (x, branch, weight, bias, branch_bias)]

    def step() -> tuple[torch.Tensor, ...]:
        outs = add_norm(x, branch, scale, weight, bias, EPS, None, branch_bias)
        return torch.autograd.grad(outs, leaves, [dx_new, dy])

    torch.cuda.set_sync_debug_mode("error")
    try:
        expected = step()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = step()
        graph.replay()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True))
