"""`mlp` in both forms: results and gradients against float64, what it saves, frozen weights,
compilation.

.venv/bin/python -m pytest tests/kernels/test_mlp.py, about 7 s
"""

import itertools
from collections.abc import Callable, Iterator

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from benchmarks.bench_mlp import use_form
from fastdeit.kernels import backend, launch_configs, mlp_epilogue
from fastdeit.kernels.gelu import gelu
from fastdeit.kernels.mlp import mlp, mlp_reference
from fastdeit.kernels.mlp_epilogue import mlp_bwd_triton, mlp_fwd_triton
from tests.kernels import interpreter
from tests.kernels.interpreter import DEVICE, INTERPRETED
from tests.kernels.operator_counter import OperatorCounter

interpreter.correct()
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
NAMES = ("x", "weight1", "bias1", "weight2")
# rows, D, H
SHAPES = {
    "D32": ((2, 10), 32, 128),
    "ragged": ((3, 7), 20, 50),
    # two blocks of rows, of columns, of the sum, none of them whole
    "blocks": ((3, 44), 70, 136),
    # blocks that are whole in D and not in H
    "whole D": ((5,), 64, 72),
    "one": ((1,), 1, 1),
}
Sizes = tuple[tuple[int, ...], int, int]


@pytest.fixture(autouse=True)
def kernels() -> Iterator[None]:
    """Run the kernels on the CPU too."""
    with backend.use_backend("triton"):
        yield


def make_inputs(
    sizes: Sizes, dtype: torch.dtype = torch.float32
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Return x, weight1, bias1, weight2, whose products are about 1, and a cotangent."""
    rows, dim, hidden = sizes
    generator = torch.Generator().manual_seed(dim)
    shapes = ((*rows, dim), (hidden, dim), (hidden,), (dim, hidden), (*rows, dim))
    scales = (1, dim**-0.5, 1, hidden**-0.5, 1)
    tensors = [
        (scale * torch.randn(shape, generator=generator)).to(DEVICE, dtype)
        for scale, shape in zip(scales, shapes, strict=True)
    ]
    return tensors[:4], tensors[4]


def differentiate(
    run: Callable[..., torch.Tensor], inputs: list[torch.Tensor], dout: torch.Tensor
) -> list[torch.Tensor]:
    """Return the output and the four gradients."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    out = run(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, dout)]


@pytest.fixture(params=["separate", "epilogue"])
def form(request: pytest.FixtureRequest) -> Iterator[str]:
    with use_form(request.param):
        yield request.param


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("sizes", SHAPES.values(), ids=SHAPES)
def test_mlp_equals_the_reference_in_float64(sizes: Sizes, dtype: torch.dtype, form: str) -> None:
    inputs, dout = make_inputs(sizes, dtype)
    with interpreter.poisoned_memory():
        found = differentiate(mlp, inputs, dout)
    wide = [tensor.double() for tensor in inputs]
    with backend.use_backend("reference"):
        expected = differentiate(mlp, wide, dout.double())
    assert torch.equal(expected[0], mlp_reference(*wide))
    # h and g are stored in the dtype between the products
    tolerance = max(1e-5, 4 * torch.finfo(dtype).eps)
    for actual, truth in zip(found, expected, strict=True):
        assert actual.dtype == dtype
        size = truth.abs().max().item()
        torch.testing.assert_close(
            actual.double(), truth, rtol=tolerance, atol=tolerance * max(1, size)
        )


def saved_by(run: Callable[[], torch.Tensor]) -> list[torch.Tensor]:
    """Return the tensors that a forward saves for its backward."""
    saved: list[torch.Tensor] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return saved


def test_only_the_input_and_the_first_product_are_saved(form: str) -> None:
    inputs, _ = make_inputs(SHAPES["D32"], torch.bfloat16)
    leaves = [tensor.requires_grad_() for tensor in inputs]
    parameters = {tensor.data_ptr() for tensor in leaves[1:]}

    def saved_bytes(run: Callable[..., torch.Tensor]) -> int:
        saved = {tensor.data_ptr(): tensor.nbytes for tensor in saved_by(lambda: run(*leaves))}
        return sum(size for place, size in saved.items() if place not in parameters)

    tokens = 2 * 10
    assert saved_bytes(mlp) == 2 * tokens * (32 + 128)
    assert saved_bytes(mlp_reference) == 2 * tokens * (32 + 128 + 128)


@pytest.mark.parametrize("trained", list(itertools.product([True, False], repeat=4))[:-1], ids=str)
def test_frozen_weights_save_and_compute_nothing_for_themselves(
    trained: tuple[bool, ...], form: int
) -> None:
    inputs, dout = make_inputs(SHAPES["ragged"])
    expected = differentiate(mlp, inputs, dout)[1:]
    leaves = [
        tensor.detach().requires_grad_(is_trained)
        for tensor, is_trained in zip(inputs, trained, strict=True)
    ]
    saved = {tensor.data_ptr() for tensor in saved_by(lambda: mlp(*leaves))}
    x, weight1, _, weight2 = (tensor.data_ptr() in saved for tensor in leaves)
    assert (x, weight1, weight2) == (trained[1], trained[0], any(trained[:3]))
    mlp(*leaves).backward(dout)
    for leaf, is_trained, gradient in zip(leaves, trained, expected, strict=True):
        if is_trained:
            torch.testing.assert_close(leaf.grad, gradient)
        else:
            assert leaf.grad is None


def test_nothing_is_saved_without_a_gradient() -> None:
    inputs, _ = make_inputs(SHAPES["ragged"])
    leaves = [tensor.requires_grad_() for tensor in inputs]
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert not saved_by(lambda: mlp(*leaves))
            torch.testing.assert_close(mlp(*leaves), mlp_reference(*leaves))


def test_checkpointed_mlp_has_equal_gradients() -> None:
    inputs, dout = make_inputs(SHAPES["D32"])

    def checkpointed(*leaves: torch.Tensor) -> torch.Tensor:
        return checkpoint(mlp, *leaves, use_reentrant=False)

    plain, again = (differentiate(run, inputs, dout) for run in (mlp, checkpointed))
    assert all(map(torch.equal, plain, again))


def test_compiled_mlp_has_equal_gradients(form: str) -> None:
    inputs, dout = make_inputs(SHAPES["ragged"])
    torch._dynamo.reset()
    compiled = torch.compile(mlp, backend="aot_eager", fullgraph=True)
    plain, traced = (differentiate(run, inputs, dout) for run in (mlp, compiled))
    assert all(map(torch.equal, plain, traced))


def test_exported_mlp_computes_the_same() -> None:
    inputs, _ = make_inputs(SHAPES["ragged"])

    class Module(torch.nn.Module):
        def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
            return mlp(*tensors)

    with torch.no_grad():
        program = torch.export.export(Module(), tuple(inputs))
        assert torch.equal(program.module()(*inputs), mlp(*inputs))


def test_form_decides_which_operators_run(form: str) -> None:
    inputs, dout = make_inputs(SHAPES["ragged"])
    with OperatorCounter() as counter:
        differentiate(mlp, inputs, dout)
    # four of the six products remain beside the two with an epilogue
    separate = {"gelu": 1, "gelu_bwd": 1, "mm": 6}
    epilogue = {"mlp_fwd": 1, "mlp_bwd": 1, "mm": 4}
    names = {*separate, *epilogue}
    found = {name: count for name, count in counter.calls.items() if name in names}
    assert found == {"separate": separate, "epilogue": epilogue}[form]


def test_no_row_of_the_table_uses_the_epilogues_before_a_gpu_has_shown_them() -> None:
    rows = [row for row in launch_configs.rows() if row["op"] in ("mlp_fwd", "mlp_bwd")]
    assert len(rows) == 10 and {row["form"] for row in rows} == {"separate"}


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_epilogue_computes_the_forwards_bits_again(dtype: torch.dtype) -> None:
    (x, weight1, bias1, weight2), dout = make_inputs(SHAPES["ragged"], dtype)
    with interpreter.poisoned_memory():
        h, g = mlp_fwd_triton(x, weight1, bias1)
        dh, dbias1, again = mlp_bwd_triton(dout, weight2, h, bias1, True)
        expected = mlp_bwd_triton(dout, weight2, h, bias1, False)
    assert torch.equal(g, again) and torch.equal(g, gelu(h, bias1))
    assert torch.equal(dh, expected[0]) and torch.equal(dbias1, expected[1])
    assert expected[2].numel() == 0


def test_bias_gradient_of_the_epilogue_sums_unrounded_terms() -> None:
    (_, _, bias1, weight2), dout = make_inputs(SHAPES["whole D"], torch.bfloat16)
    h = torch.randn(5, 72, generator=torch.Generator().manual_seed(0)).to(DEVICE, torch.bfloat16)
    _, dbias1, _ = mlp_bwd_triton(dout, weight2, h, bias1.float(), False)
    z = (h.double() + bias1.double()).requires_grad_()
    (dh,) = torch.autograd.grad(torch.nn.functional.gelu(z), z, dout.double() @ weight2.double())
    torch.testing.assert_close(dbias1.double(), dh.sum(0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("parts", [1, 8])
def test_parts_of_a_tile_change_no_bit(parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, dout = make_inputs(SHAPES["ragged"], torch.bfloat16)

    def run() -> tuple[torch.Tensor, ...]:
        x, weight1, bias1, weight2 = inputs
        h, g = mlp_fwd_triton(x, weight1, bias1)
        return h, g, *mlp_bwd_triton(dout, weight2, h, bias1, True)

    expected = run()
    table = mlp_epilogue.find_launch
    monkeypatch.setattr(
        mlp_epilogue, "find_launch", lambda *args, **sizes: table(*args, **sizes) | {"PARTS": parts}
    )
    assert all(map(torch.equal, run(), expected))


def test_epilogues_pass_opcheck() -> None:
    (x, weight1, bias1, weight2), dout = make_inputs(SHAPES["ragged"])
    h, _ = mlp_fwd_triton(x, weight1, bias1)
    ops = torch.ops.fastdeit
    torch.library.opcheck(ops.mlp_fwd.default, (x, weight1, bias1))
    for with_g in (True, False):
        torch.library.opcheck(ops.mlp_bwd.default, (dout, weight2, h, bias1, with_g))


@pytest.mark.parametrize("name", NAMES)
def test_second_derivative_raises(name: str) -> None:
    inputs, _ = make_inputs(SHAPES["ragged"])
    leaf = inputs[NAMES.index(name)].requires_grad_()
    with pytest.raises(RuntimeError, match="mlp has no second derivative"):
        torch.autograd.grad(mlp(*inputs).sum(), leaf, create_graph=True)


def test_strided_arguments_are_accepted(form: str) -> None:
    inputs, dout = make_inputs(SHAPES["ragged"])
    strided = [tensor.t().contiguous().t() for tensor in inputs[1:] if tensor.ndim == 2]
    other = [inputs[0].transpose(0, 1).contiguous().transpose(0, 1), strided[0], inputs[2]]
    plain = differentiate(mlp, inputs, dout[..., :1].expand(dout.shape).contiguous())
    again = differentiate(mlp, [*other, strided[1]], dout[..., :1].expand(dout.shape))
    for actual, expected in zip(again, plain, strict=True):
        torch.testing.assert_close(actual, expected)


def test_empty_batch_gives_zero_gradients(form: str) -> None:
    inputs, dout = make_inputs(((0, 7), 20, 50))
    out, dx, *rest = differentiate(mlp, inputs, dout)
    assert out.shape == dx.shape == (0, 7, 20)
    assert all((gradient == 0).all() for gradient in rest)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(3, 19)}, "do not fit"),
        ({"bias1": torch.zeros(49)}, "do not fit"),
        ({"weight2": torch.zeros(50, 20)}, "do not fit"),
        ({"bias1": torch.zeros(50, dtype=torch.float64)}, "float64"),
        ({"weight2": torch.zeros(20, 50, dtype=torch.bfloat16)}, "bfloat16"),
    ],
)
def test_mlp_rejects_wrong_arguments(change: dict[str, torch.Tensor], message: str) -> None:
    inputs = dict(zip(NAMES, make_inputs(SHAPES["ragged"])[0], strict=True)) | change
    with pytest.raises(ValueError, match=message):
        mlp(*(tensor.to(DEVICE) for tensor in inputs.values()))


@pytest.mark.gpu
@pytest.mark.skipif(INTERPRETED, reason="needs a CUDA device")
def test_mlp_is_captured_in_a_cuda_graph(form: str) -> None:
    inputs, dout = make_inputs(((64, 198), 192, 768), torch.bfloat16)
    leaves = [tensor.requires_grad_() for tensor in inputs]
    torch.autograd.grad(mlp(*leaves), leaves, dout)  # cuBLAS allocates its workspace
    torch.cuda.set_sync_debug_mode("error")
    try:
        expected = torch.autograd.grad(mlp(*leaves), leaves, dout)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = torch.autograd.grad(mlp(*leaves), leaves, dout)
        graph.replay()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True))
