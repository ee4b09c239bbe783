"""Host time of an operator call in microseconds: `kernels/operators.py` against a bare
autograd.Function and torch's custom_op.

python -m benchmarks.bench_dispatch [-o results.csv]

The kernels' modules are imported three times, with three definitions of `operator`, so that all
call the same launchers; Triton launches nothing, so no GPU is needed. As "function", an op without
a gradient is its launcher. The time of a backward includes autograd's engine. Times are CPU time of
the thread; the three alternate, and on a shared machine only their ratios are meaningful.
"""

import importlib
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from triton.runtime.jit import JITFunction

from benchmarks.measuring import harness
from fastdeit.kernels import operators
from fastdeit.kernels.backend import use_backend

MODULES = (
    "attention_kernels.bwd attention norm_bwd norm gelu normalise mix_kernels.rows "
    "mix_kernels.pixels mix mix_patches distill_kernels.fused distill augment"
).split()
Modules = dict[str, ModuleType]


def function(
    name: str, *, fake: Any, save: Any = None, backward: Any = None
) -> Callable[[Any], Any]:
    """Replace `operators.operator` by an autograd.Function: the least cost of a differentiable
    call."""

    def register(launch: Any) -> Any:
        def forward(ctx: Any, *inputs: Any) -> Any:
            output = launch(*inputs)
            save(ctx, inputs, output)
            return output

        if backward is None:
            return launch
        methods = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
        return type(name, (torch.autograd.Function,), methods).apply  # type: ignore[attr-defined]

    return register


def custom_op(
    name: str, *, fake: Any, save: Any = None, backward: Any = None
) -> Callable[[Any], Any]:
    """Replace `operators.operator` by torch.library.custom_op."""

    def register(launch: Any) -> Any:
        op = torch.library.custom_op(f"bench_dispatch::{name}", launch, mutates_args=())
        op.register_fake(fake)
        if backward is not None:
            op.register_autograd(backward, setup_context=save)
        return op

    return register


WAYS: dict[str, Callable[..., Any]] = {
    "operator": operators.operator,
    "function": function,
    "custom_op": custom_op,
}


def load(operator: Callable[..., Any]) -> Modules:
    """Import the kernels' modules again, with `operator` to register their launchers."""
    names = [f"fastdeit.kernels.{name}" for name in MODULES]
    for name in names:
        sys.modules.pop(name, None)
    with patch.object(operators, "operator", operator):
        return dict(zip(MODULES, map(importlib.import_module, names), strict=True))


class Call(NamedTuple):
    """A call of an op and, if it has a gradient, the tensors to differentiate it by."""

    run: Callable[[], torch.Tensor]
    leaves: tuple[torch.Tensor, ...] = ()


def calls(kernels: Modules) -> dict[str, Call]:
    """Return a call of each op on small tensors; the gradient of an op calls its backward op."""
    x = torch.zeros(2, 6, 32).requires_grad_()
    w, b = torch.zeros(2, 32).requires_grad_()
    scale = torch.ones(2)
    qkv = torch.zeros(2, 6, 3, 1, 32).requires_grad_()
    lse = torch.zeros(2, 1, 6)
    images = torch.zeros(2, 3, 8, 8)
    lam = torch.ones(2)
    box = torch.zeros(2, 4, dtype=torch.int32)
    heads = torch.zeros(2, 2, 8).requires_grad_().unbind(0)
    labels = torch.zeros(2, dtype=torch.int64)
    setting = {"smoothing": 0.1, "kind": "hard", "alpha": 0.5, "tau": 1.0}
    pixels = torch.zeros(2, 8, 8, 3, dtype=torch.uint8)
    crops = kernels["normalise"].Pixels(
        pixels, torch.zeros(3, 256), box, "pixel", torch.zeros(2, dtype=torch.int64)
    )
    ops = torch.full((2, 1), -1, dtype=torch.int32)
    args = torch.zeros(2, 1, 2, dtype=torch.float64)
    attention = kernels["attention"]
    norm = kernels["norm"]
    return {
        "attention": Call(lambda: attention.attention(qkv), (qkv,)),
        "attention_weights": Call(
            lambda: attention.attention_weights_triton(qkv.detach(), lse, [0])
        ),
        "norm": Call(lambda: norm.norm(x, w, b, 1e-6), (x, w, b)),
        "add_norm": Call(lambda: norm.add_norm(x, x, scale, w, b, 1e-6)[1], (x, w, b)),
        "gelu": Call(lambda: kernels["gelu"].gelu(x, b), (x, b)),
        "mix": Call(lambda: kernels["mix"].mix(images, lam, box)),
        "mix_patches": Call(lambda: kernels["mix_patches"].mix_patches(images, lam, box, 4)[0]),
        "normalise": Call(lambda: kernels["normalise"].normalise(*crops)),
        "mix_pixels": Call(lambda: kernels["mix_patches"].mix_patches(crops, lam, box, 4)[0]),
        "distill": Call(
            lambda: kernels["distill"].distill(*heads, labels, lam, labels, **setting).loss, heads
        ),
        "augment": Call(
            lambda: kernels["augment"].augment(pixels, ops, args, layer_ops=[["Invert"]])
        ),
    }


def modes(call: Call) -> dict[str, Callable[[], object]]:
    """Return the call as in a training step, the same without a gradient, and the backward."""

    def without_gradient() -> object:
        with torch.no_grad():
            return call.run()

    found: dict[str, Callable[[], object]] = {"fwd": call.run, "no_grad": without_gradient}
    if call.leaves:
        y = call.run()
        cotangent = torch.ones_like(y)
        found["bwd"] = lambda: torch.autograd.grad(y, call.leaves, cotangent, retain_graph=True)
    return found


def call_us(run: Callable[[], object], count: int = 100) -> float:
    """Return the mean of `count` calls, in microseconds of this thread's CPU time."""
    start = time.thread_time()
    for _ in range(count):
        run()
    return 1e6 * (time.thread_time() - start) / count


def take_turns(runs: dict[str, Callable[[], object]], rounds: int = 30) -> dict[str, list[float]]:
    """Return the microseconds of a call in each round, by implementation, after a warm-up round."""
    found = [{name: call_us(run) for name, run in runs.items()} for _ in range(rounds + 1)]
    return {name: [times[name] for times in found[1:]] for name in runs}


@contextmanager
def nothing_launched() -> Iterator[None]:
    """Select the kernels for CPU tensors too, and launch none of them."""
    with use_backend("triton"), patch.object(JITFunction, "run", lambda *_, **__: None):
        yield


def measure(op: str, by_way: dict[str, dict[str, Call]]) -> Iterator[harness.Row]:
    """Yield a row for each mode: microseconds of each implementation, and the ratios of the others
    to ours, medians over the rounds."""
    runs = {way: modes(found[op]) for way, found in by_way.items()}
    for mode in runs["operator"]:
        times = take_turns({way: found[mode] for way, found in runs.items()})
        row: harness.Row = {"op": op, "mode": mode}
        row |= {f"{way}_us": round(statistics.median(found), 1) for way, found in times.items()}
        for way in ("function", "custom_op"):
            shares = map(float.__truediv__, times[way], times["operator"])
            row[f"{way}_ratio"] = round(statistics.median(shares), 2)
        yield row


def main() -> None:
    parser = harness.make_parser(__doc__)
    parser.add_argument("-o", "--output", type=Path, default=harness.RESULTS / "cpu-dispatch.csv")
    output = parser.parse_args().output
    rows: list[harness.Row] = []
    with nothing_launched():
        by_way = {name: calls(load(way)) for name, way in WAYS.items()}
        for op in by_way["operator"]:
            for row in measure(op, by_way):
                rows.append(row)
                print("  ".join(f"{column} {value}" for column, value in row.items()), flush=True)
    stamp = harness.environment(torch.device("cpu"))
    harness.write_rows(output, [{**stamp, **row} for row in rows], [*stamp, *rows[0]])


if __name__ == "__main__":
    if os.environ.get("TRITON_INTERPRET") == "1":
        sys.exit("unset TRITON_INTERPRET: the interpreter's own calls would be measured")
    torch.set_num_threads(1)
    main()
