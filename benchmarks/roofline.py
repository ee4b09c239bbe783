"""An estimate of a training step's time on a GPU: for each kernel the longer of its bytes and its
operations, at rates that kernels reach, plus a start.

python -m benchmarks.roofline

It is an estimate for comparison with a profile, not a measurement: no GPU has shown it yet. u is
the bytes of one activation (B, N, D) in 16 bits. Attention moves 4u forward and 8u backward (the
table of docs/kernels.md); how far it stays above its bytes is a guess.
"""

from dataclasses import dataclass
from typing import NamedTuple

from fastdeit.models.sizes import SIZES

TOKENS = 198
PATCHES = 196
CLASSES = 1000
ATTENTION = (1.35, 2.0)
"""Time of attention divided by that of its bytes, forward and backward."""


@dataclass(frozen=True)
class Device:
    """Rates that kernels reach, and the microseconds that one takes to start and to end."""

    bytes_per_s: float = 2.8e12
    flops_per_s: float = 6.2e14
    start_us: float = 1.2


class Kernel(NamedTuple):
    """Kernels of one kind in a step, each with so many bytes and operations."""

    part: str
    number: int
    nbytes: float
    flops: float = 0.0


H100 = Device()


def product(part: str, count: int, rows: int, inner: int, columns: int) -> list[Kernel]:
    """Return the three products of a linear layer: forward, and the gradients of input and
    weight."""
    nbytes = 2.0 * (rows * inner + rows * columns + inner * columns)
    return [Kernel(part, 3 * count, nbytes, 2.0 * rows * inner * columns)]


def list_kernels(student: str, batch: int) -> list[Kernel]:
    """Return the kernels of a step of DeiT "tiny", "small" or "base", distilled, 224 px, bf16.

    The last block computes two tokens of an image behind its attention.
    """
    size = SIZES[f"deit_{student}_distilled_patch16_224"]
    width, depth = size.embed_dim, size.depth
    rows, last = batch * TOKENS, 2 * batch
    u = 2.0 * rows * width
    parameters = 12 * depth * width**2 + (768 + 2 * CLASSES + TOKENS) * width
    kernels = product("products", depth, rows, width, 3 * width)
    for count, m in ((depth - 1, rows), (1, last)):
        kernels += product("products", count, m, width, width)
        kernels += product("products", count, m, width, 4 * width)
        kernels += product("products", count, m, 4 * width, width)
        unit = 2.0 * m * width
        kernels += [
            Kernel("GELU", count, 8 * unit),
            Kernel("GELU", count, 16 * unit),
            Kernel("norms", 2 * count, 4 * unit),
            Kernel("norms", 2 * count, 5 * unit),
        ]
    kernels += product("embedding and heads", 1, batch * PATCHES, 768, width)
    kernels += product("embedding and heads", 2, batch, width, CLASSES)
    return [
        *kernels,
        Kernel("attention", depth, 4 * u * ATTENTION[0]),
        Kernel("attention", depth, 8 * u * ATTENTION[1]),
        Kernel("embedding and heads", 1, 8 * u),
        Kernel("mix", 1, batch * 3 * 224**2 * 4.0),
        # gradients to fp32, norm, AdamW, weights in bf16, EMA
        Kernel("update", 4, parameters * 56 / 4),
    ]


def time_ms(kernel: Kernel, device: Device = H100) -> float:
    seconds = max(kernel.nbytes / device.bytes_per_s, kernel.flops / device.flops_per_s)
    return kernel.number * (1e3 * seconds + device.start_us / 1e3)


def step_ms(student: str, batch: int, device: Device = H100) -> float:
    """Return the estimate of a step."""
    return sum(time_ms(kernel, device) for kernel in list_kernels(student, batch))


def parts_ms(student: str, batch: int, device: Device = H100) -> dict[str, float]:
    """Return the estimate by part, the longest first."""
    parts: dict[str, float] = {}
    for kernel in list_kernels(student, batch):
        parts[kernel.part] = parts.get(kernel.part, 0.0) + time_ms(kernel, device)
    return dict(sorted(parts.items(), key=lambda part: -part[1]))


def main() -> None:
    for student in ("tiny", "small", "base"):
        for batch in (128, 256, 1024):
            total = step_ms(student, batch)
            shares = ", ".join(
                f"{name} {100 * ms / total:.0f} %" for name, ms in parts_ms(student, batch).items()
            )
            print(f"{student} {batch}: {total:.1f} ms, {1e3 * batch / total:,.0f}/s: {shares}")


if __name__ == "__main__":
    main()
