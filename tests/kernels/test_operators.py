"""The registration of launchers as operators: Python calls a call costs, gradients, devices, and
loading a module again.

.venv/bin/python -m pytest tests/kernels/test_operators.py, about 5 s
"""

import ast
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func

from fastdeit.kernels import (  # noqa: F401  # their import registers the operators
    attention,
    augment,
    backend,
    distill,
    gelu,
    mix,
    mix_patches,
    mlp,
    norm,
    operators,
    resize,
)
from fastdeit.kernels.gelu import gelu_bwd_triton, gelu_triton
from fastdeit.kernels.operators import on_its_device, operator
from tests.kernels import interpreter
from tests.kernels.interpreter import DEVICE

interpreter.correct()
KERNELS = Path(__file__).parents[2] / "kernels"
SOURCES = sorted(KERNELS.rglob("*.py"))
OPS = [name for path in SOURCES for name in re.findall(r'@operator\(\s*"(\w+)"', path.read_text())]


@pytest.fixture(autouse=True)
def kernels() -> Iterator[None]:
    """Run the kernels on the CPU too."""
    with backend.use_backend("triton"):
        yield


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_only_operators_py_registers_kernels(path: Path) -> None:
    """custom_op and its like cost the host several times as much at each call."""
    used = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            used.add(node.attr)
        elif isinstance(node, ast.ImportFrom):
            used |= {alias.name for alias in node.names}
    assert not used & {"custom_op", "triton_op", "register_autograd"}
    assert path.stem == "operators" or not used & {"Library", "register_fake", "impl", "define"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_a_kernel_names_the_work_of_a_program_and_its_grid(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef) and node.name.endswith("_kernel"):
            is_kernel = bool(node.decorator_list)
            assert not is_kernel or "grid:" in (ast.get_docstring(node) or ""), node.name


@pytest.mark.parametrize("name", OPS)
def test_every_op_has_all_dispatch_keys_and_mutates_nothing(name: str) -> None:
    assert not getattr(torch.ops.fastdeit, name).default._schema.is_mutable
    for key in ("CompositeExplicitAutograd", "CUDA", "Autograd", "Meta"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"fastdeit::{name}", key)


# what a call costs


def count_calls(run: Callable[[], object]) -> int:
    """Return how many Python functions a call enters."""
    entered = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal entered
        entered += event == "call"

    sys.setprofile(count)
    try:
        run()
    finally:
        sys.setprofile(None)
    return entered


def calls_of(apply: Callable[..., torch.Tensor]) -> tuple[int, int]:
    """Return the Python calls of a forward and of its backward.

    The tensor is empty, so that nothing is launched, also on a machine with a GPU.
    """
    x = torch.empty(0, 32).requires_grad_()
    y = apply(x, None)

    def backward() -> object:
        return torch.autograd.grad(y, x, y, retain_graph=True)

    backward()  # the first call builds what later ones reuse
    return count_calls(lambda: apply(x, None)), count_calls(backward)


def bare_function() -> Callable[..., torch.Tensor]:
    """Wrap gelu's launchers in an autograd.Function, without an operator."""
    launch, launch_bwd = inspect.unwrap(gelu_triton), inspect.unwrap(gelu_bwd_triton)

    class Bare(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            ctx.save_for_backward(*inputs)
            return launch(*inputs)

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            return launch_bwd(*grads, *ctx.saved_tensors)[0], None

    return Bare.apply


def custom_operator() -> Callable[..., torch.Tensor]:
    """Wrap gelu's launchers with torch.library.custom_op."""
    launch, launch_bwd = inspect.unwrap(gelu_triton), inspect.unwrap(gelu_bwd_triton)
    op = torch.library.custom_op("test_operators::gelu", launch, mutates_args=())
    bwd = torch.library.custom_op("test_operators::gelu_bwd", launch_bwd, mutates_args=())

    def save(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)

    op.register_autograd(lambda ctx, dy: (bwd(dy, *ctx.saved_tensors)[0], None), setup_context=save)
    return op


def test_operator_adds_few_calls_to_a_bare_function() -> None:
    """Beyond a bare function, an operator makes 6 calls forward and 5 backward with torch 2.11
    (`call`, `is_compiling`, `differentiate`, the operator, `save`); custom_op makes 15 and 14."""
    ours = calls_of(gelu_triton)
    bare = calls_of(bare_function())
    custom = calls_of(custom_operator())
    for mine, floor, peer in zip(ours, bare, custom, strict=True):
        assert 0 < mine - floor <= 7
        assert peer - floor > 10  # the count includes what custom_op does


def test_call_without_gradients_skips_the_autograd_function() -> None:
    x = torch.empty(0, 32).requires_grad_()
    launcher = count_calls(lambda: inspect.unwrap(gelu_triton)(x, None))
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert count_calls(lambda: gelu_triton(x, None)) - launcher <= 4


# gradients


@pytest.fixture
def x() -> torch.Tensor:
    return torch.linspace(-2, 2, 16, device=DEVICE).view(2, 8).requires_grad_()


def test_tensors_are_saved_only_for_a_gradient(x: torch.Tensor) -> None:
    saved: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda _: x):
        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                assert not gelu.gelu(x).requires_grad
        assert not gelu.gelu(x.detach()).requires_grad
        assert not saved
        assert gelu.gelu(x).requires_grad
        assert len(saved) == 1


@pytest.mark.parametrize("trained", [False, True])
def test_branch_is_saved_only_for_the_gradient_of_gamma(trained: bool) -> None:
    x, branch = torch.ones(2, 1, 2, 8, device=DEVICE).requires_grad_().unbind(0)
    weight, bias, gamma = torch.ones(3, 8, device=DEVICE).unbind(0)
    saved: list[int] = []

    def save(tensor: torch.Tensor) -> None:
        saved.append(tensor.data_ptr())

    with torch.autograd.graph.saved_tensors_hooks(save, lambda _: x):
        norm.add_norm(x, branch, None, weight, bias, 1e-6, gamma.requires_grad_(trained))
    assert (branch.data_ptr() in saved) == trained


@pytest.mark.parametrize("by_name", [False, True], ids=["call", "torch.ops"])
def test_second_derivative_raises(x: torch.Tensor, by_name: bool) -> None:
    """It also raises where only the saved x, and not the incoming gradient, depends on x."""
    y = torch.ops.fastdeit.gelu(x, None) if by_name else gelu.gelu(x)
    (dx,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    assert dx.requires_grad
    with pytest.raises(RuntimeError, match="fastdeit::gelu_bwd has no derivative"):
        (dx.square().sum() + x.sum()).backward()


def test_op_without_a_gradient_raises_in_backward(x: torch.Tensor) -> None:
    images = x.detach().view(2, 1, 2, 4).expand(2, 3, 2, 4).requires_grad_()
    lam = torch.ones(2, device=DEVICE)
    box = torch.zeros(2, 4, dtype=torch.int32, device=DEVICE)
    with pytest.raises(RuntimeError, match="fastdeit::mix has no derivative"):
        mix.mix(images, lam, box).sum().backward()


def test_backward_may_call_autograd_again(x: torch.Tensor) -> None:
    """An outer `Function` contains the op, and its backward calls autograd."""

    class Outer(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            with torch.enable_grad():
                ctx.inner = x.detach().requires_grad_()
                ctx.y = gelu.gelu(ctx.inner)
            return ctx.y.detach()

        @staticmethod
        def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
            return torch.autograd.grad(ctx.y, ctx.inner, grads)[0]

    (expected,) = torch.autograd.grad(gelu.gelu(x).square().sum(), x)
    (actual,) = torch.autograd.grad(Outer.apply(x).square().sum(), x)
    assert torch.equal(actual, expected)


def test_compiled_step_contains_forward_and_backward_operators(x: torch.Tensor) -> None:
    found: dict[str, list[str]] = {}

    def compiler(way: str) -> Callable[..., Any]:
        def keep(graph: torch.fx.GraphModule, inputs: object) -> Any:
            names = [str(node.target) for node in graph.graph.nodes]
            found[way] = [name for name in names if name.startswith("fastdeit.")]
            return make_boxed_func(graph.forward)

        return keep

    torch._dynamo.reset()
    weight, bias = torch.ones(2, 8, device=DEVICE).unbind(0)

    def step(x: torch.Tensor) -> torch.Tensor:
        return gelu.gelu(norm.add_norm(x[None], x[None], None, weight, bias, 1e-6)[1])

    backend = aot_autograd(fw_compiler=compiler("fwd"), bw_compiler=compiler("bwd"))
    compiled = torch.compile(step, backend=backend, fullgraph=True)
    cotangent = torch.linspace(0, 1, 16, device=DEVICE).view(1, 2, 8)
    (expected,) = torch.autograd.grad(step(x), x, cotangent)
    (actual,) = torch.autograd.grad(compiled(x), x, cotangent)
    assert torch.equal(actual, expected)
    assert found == {
        "fwd": ["fastdeit.add_norm.default", "fastdeit.gelu.default"],
        "bwd": ["fastdeit.gelu_bwd.default", "fastdeit.add_norm_bwd.default"],
    }


# devices


def test_launcher_runs_on_the_device_of_its_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    current = 0
    entered: list[int] = []

    class Device:
        def __init__(self, index: int) -> None:
            self.index = index

        def __enter__(self) -> None:
            entered.append(self.index)

        def __exit__(self, *_: object) -> None:
            entered.append(-1)

    def launch(dy: torch.Tensor | None, x: torch.Tensor, factor: float) -> tuple[object, ...]:
        return dy, factor, *entered

    monkeypatch.setattr(torch.cuda, "current_device", lambda: current)
    monkeypatch.setattr(torch.cuda, "device", Device)
    guarded: Any = on_its_device(launch)
    assert guarded(None, SimpleNamespace(device=torch.device("cuda", 0)), 0.5) == (None, 0.5)
    assert guarded(None, SimpleNamespace(device=torch.device("cuda", 1)), 0.5) == (None, 0.5, 1)
    assert entered == [1, -1]


@pytest.mark.gpu
def test_tensors_may_be_on_another_gpu_than_the_current() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    x = torch.randn(64, 128, device="cuda:1", requires_grad=True)
    (dx,) = torch.autograd.grad(gelu.gelu(x).sum(), x)
    torch.testing.assert_close(dx, torch.autograd.grad(gelu.gelu_reference(x).sum(), x)[0])


# a module that is loaded again

MODULE = """
import torch
from fastdeit.kernels.operators import operator

@operator("test_operators_shift", fake=torch.empty_like, backward=lambda ctx, dy: {factor} * dy)
def shift(x: torch.Tensor) -> torch.Tensor:
    return x + {factor}
"""


def load(folder: Path, factor: int) -> ModuleType:
    path = folder / f"shift_{factor}.py"
    path.write_text(MODULE.format(factor=factor))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_module_may_be_loaded_twice(tmp_path: Path) -> None:
    """Every reference to the operator calls the kernels loaded last, also after operators.py itself
    has been reloaded."""
    x = torch.zeros(3, requires_grad=True)
    loaded: list[Any] = []
    for factor in (1, 2, 3):
        loaded.append(load(tmp_path, factor).shift)
        importlib.reload(operators)
        by_name = torch.ops.fastdeit.test_operators_shift
        expected = torch.full((3,), float(factor))
        for call in (*loaded, by_name):
            with torch.no_grad():
                assert torch.equal(call(x), expected)
        (dx,) = torch.autograd.grad(by_name(x).sum(), x)
        assert torch.equal(dx, expected)
        torch.library.opcheck(by_name.default, (x,))


def test_operator_accepts_keywords_and_keeps_its_docstring() -> None:
    @operator("test_operators_scale", fake=lambda x, factor: torch.empty_like(x))
    def scale(x: torch.Tensor, factor: float) -> torch.Tensor:
        """Scale."""
        return x * factor

    x = torch.ones(2)
    assert torch.equal(scale(x, factor=2.0), scale(x, 2.0)) and scale.__doc__ == "Scale."
