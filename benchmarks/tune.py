"""Refresh kernels/launch_configs.json on this machine's GPU: the fastest launch of each row that a DeiT's
training uses.

python -m benchmarks.tune [--only attention norm] [--seconds 300]

Each workload below is a call of an op at DeiT's sizes. The rows of the table that it reads are
changed one number at a time, halved or doubled (warps, blocks, programs) or by one (stages), and a
change stays when the call got faster by 2 % and still gives what it gave before. An architecture
without rows of its own starts from copies of those that it uses.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import triton

from benchmarks.harness import quantiles_ms
from fastdeit.kernels import launch_configs
from fastdeit.kernels.attention import attention
from fastdeit.kernels.distill import distill
from fastdeit.kernels.gelu import gelu
from fastdeit.kernels.mix import mix
from fastdeit.kernels.mix_patches import mix_patches
from fastdeit.kernels.norm import add_norm

BATCH, TOKENS, EPS = 256, 198, 1e-6
GAIN = 0.98
"""A change must take at most this share of the time before."""
Row = dict[str, Any]
Call = Callable[[], list[torch.Tensor]]


def _random(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(shape, device="cuda", dtype=dtype)


def _forward_backward(run: Callable[..., Any], *leaves: torch.Tensor) -> Iterator[tuple[str, Call]]:
    """The forward, and the backward alone, of an op of these leaves."""
    for leaf in leaves:
        leaf.requires_grad_()
    result = run(*leaves)
    outputs = [
        part for part in (result if isinstance(result, tuple) else (result,)) if part.requires_grad
    ]
    cotangents = [torch.randn_like(part) for part in outputs]

    def forward() -> list[torch.Tensor]:
        with torch.no_grad():
            again = run(*leaves)
        return list(again) if isinstance(again, tuple) else [again]

    yield "forward", forward
    yield (
        "backward",
        lambda: list(torch.autograd.grad(outputs, leaves, cotangents, retain_graph=True)),
    )


def _attention() -> Iterator[tuple[str, Call]]:
    for tokens, heads, dim, batch in (
        (198, 6, 64, 256),
        (578, 6, 64, 64),
        (198, 6, 32, 256),
        (198, 6, 128, 128),
    ):
        for name, call in _forward_backward(attention, _random(batch, tokens, 3, heads, dim)):
            yield f"N={tokens} D={dim} {name}", call


def _norm() -> Iterator[tuple[str, Call]]:
    for dim in (384, 192, 768):
        scale = torch.ones(BATCH, device="cuda")
        leaves = (
            _random(BATCH, TOKENS, dim),
            _random(BATCH, TOKENS, dim),
            _random(dim),
            _random(dim),
        )

        def run(x, branch, weight, bias, scale=scale):  # type: ignore[no-untyped-def]
            return add_norm(x, branch, scale, weight, bias, EPS)

        for name, call in _forward_backward(run, *leaves):
            yield f"D={dim} {name}", call


def _gelu() -> Iterator[tuple[str, Call]]:
    for dim in (1536, 768, 3072):
        for name, call in _forward_backward(gelu, _random(BATCH, TOKENS, dim), _random(dim)):
            yield f"D={dim} {name}", call


def _mix() -> Iterator[tuple[str, Call]]:
    images = _random(BATCH, 3, 224, 224, dtype=torch.float16)
    lam, box = (
        torch.rand(BATCH, device="cuda"),
        torch.zeros(BATCH, 4, dtype=torch.int32, device="cuda"),
    )
    yield "images", lambda: [mix(images, lam, box, torch.bfloat16, True)]
    yield "patches", lambda: [mix_patches(images, lam, box, 16, torch.bfloat16)[0]]


def _distill() -> Iterator[tuple[str, Call]]:
    for classes in (100, 1000, 21841):
        labels = torch.randint(classes, (BATCH,), device="cuda")
        lam = torch.rand(BATCH, device="cuda")
        heads = [_random(BATCH, classes).requires_grad_() for _ in range(2)]

        def call(
            heads: list[torch.Tensor] = heads,
            labels: torch.Tensor = labels,
            lam: torch.Tensor = lam,
        ) -> list[torch.Tensor]:
            parts = distill(
                heads[0],
                heads[1],
                labels,
                lam,
                labels,
                smoothing=0.1,
                kind="hard",
                alpha=0.5,
                tau=3.0,
            )
            return [parts.loss.detach(), *torch.autograd.grad(parts.loss, heads)]

        yield f"K={classes}", call


WORKLOADS = {
    "attention": _attention,
    "norm": _norm,
    "gelu": _gelu,
    "mix": _mix,
    "distill": _distill,
}


def rows_of(call: Call) -> list[Row]:
    """The rows of the table that a call reads."""
    read: list[Row] = []
    find = launch_configs._find_launch

    def watched(*key: Any) -> launch_configs.Launch:
        launch = find(*key)
        read.extend(
            row for row in launch_configs.rows() if row["launch"] is launch and row not in read
        )
        return launch

    launch_configs._find_launch = watched  # type: ignore[assignment]
    try:
        call()
    finally:
        launch_configs._find_launch = find
    return read


def adopt(arch: int) -> None:
    """Give the architecture rows of its own for every op, copies of those that it uses."""
    for op, bits in {(row["op"], row["bits"]) for row in launch_configs.rows()}:
        ours = [
            row
            for row in launch_configs.rows()
            if (row["op"], row["bits"]) == (op, bits) and row["arch"] <= arch
        ]
        newest = max((row["arch"] for row in ours), default=arch)
        copies = [
            row | {"arch": arch, "launch": dict(row["launch"])}
            for row in ours
            if row["arch"] == newest < arch
        ]
        launch_configs.rows().extend(copies)
    launch_configs._find_launch.cache_clear()


def neighbours(launch: launch_configs.Launch) -> Iterator[launch_configs.Launch]:
    """Launches that differ in one number."""
    for name, value in launch.items():
        near = (value - 1, value + 1) if name == "num_stages" else (value // 2, value * 2)
        limit = 32 if name == "num_warps" else 8 if name == "num_stages" else 1 << 16
        yield from (launch | {name: other} for other in near if 1 <= other <= limit)


def time_of(call: Call, expected: list[torch.Tensor] | None = None) -> float:
    """Milliseconds of a call; infinity for a launch that does not compile or fit, or gives
    something else."""
    try:
        found = call()
        torch.cuda.synchronize()
        for actual, wanted in zip(found, expected or found, strict=True):
            torch.testing.assert_close(actual, wanted, rtol=2e-2, atol=2e-2)
        return quantiles_ms(call, torch.device("cuda"), repeat_ms=60)[1]
    except (AssertionError, RuntimeError, triton.CompilationError, triton.OutOfResources):
        return float("inf")


def improve(row: Row, call: Call) -> None:
    """Walk downhill from the row's launch until no neighbour is faster."""
    expected = [tensor.clone() for tensor in call()]
    best, moved = time_of(call), True
    while moved:
        moved, start = False, dict(row["launch"])
        for other in neighbours(start):
            row["launch"].update(other)
            taken = time_of(call, expected)
            if taken < GAIN * best:
                print(f"    {best:.4f} -> {taken:.4f} ms  {other}", flush=True)
                best, moved = taken, True
                break
            row["launch"].update(start)


def write() -> None:
    order = sorted(
        launch_configs.rows(),
        key=lambda row: (row["op"], row["arch"], row["bits"], row["D"], row["N"]),
    )
    launch_configs.TABLE.write_text(
        "[\n" + ",\n".join(json.dumps(row) for row in order) + "\n]\n", encoding="utf-8"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=WORKLOADS, default=list(WORKLOADS), help="ops")
    parser.add_argument(
        "--seconds", type=float, default=300, help="start no workload after so long"
    )
    arguments, start = parser.parse_args(), time.monotonic()
    adopt(launch_configs.arch(torch.device("cuda")))
    for op in arguments.only:
        for name, call in WORKLOADS[op]():
            if time.monotonic() - start > arguments.seconds:
                print(f"left out, no time: {op} {name}")
                continue
            for row in rows_of(call):
                print(f"{op} {name}: {row['op']}", flush=True)
                improve(row, call)
            write()


if __name__ == "__main__":
    main()
