"""Decorator that makes a launcher an operator of torch, `fastdeit::<op>`: one call for
torch.compile, CUDA graphs and profilers.

In eager mode a call enters the gradient's `Function`, then the dispatcher below autograd, then the
launcher. The operator's own autograd kernel is the same `Function`, for calls by its name: from a
compiler, an exporter, opcheck. `torch.library.custom_op` would enter the dispatcher twice and check
every argument and output at each call. A student makes about fifty calls a step, and where the host
is slower than the GPU they decide its speed (benchmarks/bench_dispatch.py measures them,
tests/kernels/test_operators.py counts the Python calls).
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch

Launcher = TypeVar("Launcher", bound=Callable[..., Any])
# the guard with which torch's own Python operators reach the kernels below their gradient
_BelowAutograd = torch._C._AutoDispatchBelowAutograd


def operator(
    name: str,
    *,
    fake: Callable[..., Any],
    save: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
) -> Callable[[Launcher], Launcher]:
    """Register the decorated launcher as `fastdeit::<name>`; return a function that calls the
    operator, with the same arguments.

    The launcher's annotations make the schema, which mutates nothing; an output may be no view of
    an argument. On CUDA tensors it runs on their device. fake: the same arguments → empty outputs,
    for tracing. save(ctx, inputs, output) and backward(ctx, *grads): as a torch.autograd.Function's
    setup_context and backward. Without them a derivative raises RuntimeError; so does a second
    derivative whose backward calls such operators.
    """

    def register(launch: Launcher) -> Launcher:
        library = _library(name, launch)
        library.impl(name, launch, "CompositeExplicitAutograd")
        library.impl(name, on_its_device(launch), "CUDA")
        torch.library.register_fake(f"fastdeit::{name}", fake, lib=library)
        op = getattr(torch.ops.fastdeit, name).default
        differentiable = _differentiable(op, name, save or _save_nothing, backward or _refuse)
        library.impl(name, differentiable, "Autograd")

        @functools.wraps(launch)
        def call(*inputs: Any, **named: Any) -> Any:
            # a compiler must see one operator, and only torch can resolve named arguments
            if named or torch.compiler.is_compiling():
                return op(*inputs, **named)
            return differentiable(*inputs)

        return cast(Launcher, call)

    return register


def _library(name: str, launch: Callable[..., Any]) -> torch.library.Library:
    """Define the operator, unless it exists, and return a new library for its kernels in place of
    the last one.

    So a module that is loaded a second time replaces its kernels. The definition stays, and with it
    every reference to the operator.
    """
    # stored on torch's object, which lives as long as the operators, also if this module is loaded
    # again
    kept: dict[str, torch.library.Library] = vars(torch.ops.fastdeit).setdefault("_libraries", {})
    schema = name + torch.library.infer_schema(launch, mutates_args=())
    if schema not in kept:
        kept[schema] = torch.library.Library("fastdeit", "FRAGMENT")
        kept[schema].define(schema, tags=torch.Tag.pt2_compliant_tag)
    # the last one is freed, and its kernels with it
    kept[name] = torch.library.Library("fastdeit", "FRAGMENT")
    return kept[name]


def on_its_device(launch: Callable[..., Any]) -> Callable[..., Any]:
    """Return a launcher that runs with the device of its first tensor as the current device, on
    which Triton launches."""
    annotations = [
        parameter.annotation for parameter in inspect.signature(launch).parameters.values()
    ]
    place = annotations.index(torch.Tensor)

    def launch_there(*inputs: Any) -> Any:
        index = inputs[place].device.index
        if index == torch.cuda.current_device():
            return launch(*inputs)
        with torch.cuda.device(index):
            return launch(*inputs)

    return launch_there


def _differentiable(
    op: Callable[..., Any], name: str, save: Callable[..., None], backward: Callable[..., Any]
) -> Callable[..., Any]:
    """Return an operator wrapped in a `Function`, which is also the kernel of the dispatcher's
    autograd key."""

    def forward(ctx: Any, *inputs: Any) -> Any:
        with _BelowAutograd():
            output = op(*inputs)
        save(ctx, inputs, output)
        return output

    # one forward: with a setup_context beside it, apply would bind the arguments to the signature
    # at every call
    methods = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    gradient = cast(Any, type(f"fastdeit_{name}", (torch.autograd.Function,), methods))

    def differentiate(*inputs: Any) -> Any:
        if torch.is_grad_enabled():
            return gradient.apply(*inputs)
        with _BelowAutograd():
            return op(*inputs)

    return differentiate


def _save_nothing(ctx: Any, inputs: Any, output: Any) -> None:
    pass


def _refuse(ctx: Any, *grads: Any) -> Any:
    name = type(ctx).__name__.removesuffix("Backward").replace("_", "::", 1)
    raise RuntimeError(
        f"{name} has no derivative; attention, add_norm, gelu and distill have one, once"
    )
