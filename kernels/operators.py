"""What makes a launcher an operator of torch, `fastdeit::<op>`: torch.compile, CUDA graphs and profilers keep it as one call.

A call goes through the dispatcher to the gradient's `Function`, from there below autograd to the launcher, and nothing in
between looks at the arguments. `torch.library.custom_op` would check them at each call, which costs several times as much as
all the rest: a student makes about fifty calls a step, and where the host is slower than the GPU they decide its speed
(benchmarks/bench_dispatch.py measures it, tests/kernels/test_operators.py counts the steps).
"""

import inspect
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch

Launcher = TypeVar("Launcher", bound=Callable[..., Any])
# what torch's own Python operators use to reach the kernels below their gradient
_BelowAutograd = torch._C._AutoDispatchBelowAutograd


def operator(
    name: str,
    *,
    fake: Callable[..., Any],
    save: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
) -> Callable[[Launcher], Launcher]:
    """Register the decorated launcher as `fastdeit::<name>`; gives the operator in its place.

    The launcher's annotations make the schema, which mutates nothing; an output may be no view of an argument. On CUDA tensors
    it runs on their device. fake: the same arguments → empty outputs, for tracing. save(ctx, inputs, output) and
    backward(ctx, *grads): as the forward and backward of a torch.autograd.Function, which differentiate once; without
    them a gradient is refused, with a RuntimeError, when it is asked for.
    """

    def register(launch: Launcher) -> Launcher:
        library = _library(name, launch)
        library.impl(name, launch, "CompositeExplicitAutograd")
        library.impl(name, on_its_device(launch), "CUDA")
        torch.library.register_fake(f"fastdeit::{name}", fake, lib=library)
        op = getattr(torch.ops.fastdeit, name).default
        library.impl(name, _differentiable(op, name, save or _save_nothing, backward or _refuse), "Autograd")
        return cast(Launcher, op)

    return register


def _library(name: str, launch: Callable[..., Any]) -> torch.library.Library:
    """Define the operator, unless it is, and return a new library for its kernels in the place of the last one.

    A module that is loaded a second time so replaces its kernels. The definition stays: whoever holds the operator may call it.
    """
    # on torch's object, which lives as long as the operators do, also when this module is loaded again
    kept: dict[str, torch.library.Library] = vars(torch.ops.fastdeit).setdefault("_libraries", {})
    schema = name + torch.library.infer_schema(launch, mutates_args=())
    if schema not in kept:
        kept[schema] = torch.library.Library("fastdeit", "FRAGMENT")
        kept[schema].define(schema, tags=torch.Tag.pt2_compliant_tag)
    kept.pop(name, None)  # before the new one comes: torch takes one kernel a key
    kept[name] = torch.library.Library("fastdeit", "FRAGMENT")
    return kept[name]


def on_its_device(launch: Callable[..., Any]) -> Callable[..., Any]:
    """Run the launcher with its first tensor's device as the current one: Triton launches on that, whatever it is given."""
    annotations = [parameter.annotation for parameter in inspect.signature(launch).parameters.values()]
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
    """Give the operator a kernel for the dispatcher's autograd key."""

    def forward(ctx: Any, *inputs: Any) -> Any:
        with _BelowAutograd():
            output = op(*inputs)
        save(ctx, inputs, output)
        return output

    def once(ctx: Any, *grads: Any) -> Any:
        if torch.is_grad_enabled():  # for a second derivative, which the backward's own operators refuse
            return backward(ctx, *grads)
        with _BelowAutograd():
            return backward(ctx, *grads)

    # forward in one piece: with a setup_context, apply looks at the signature at every call
    methods = {"forward": staticmethod(forward), "backward": staticmethod(once)}
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
    raise RuntimeError(f"{name} has no derivative; attention, add_norm, gelu and distill have one, once")
