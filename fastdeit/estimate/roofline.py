"""An estimate of a training step's time on a GPU: for each kernel the longer of the times for its
bytes and for its operations, at rates that kernels reach, plus the time of its start.

It is an estimate for comparison with a profile, not a measurement: no GPU has shown it yet. u is
the bytes of one activation (B, N, D) in 16 bits. Attention moves 4u forward and 8u backward (the
table of docs/kernels.md); the factor of its time above that of its bytes is a guess.
"""

from dataclasses import dataclass
from typing import NamedTuple

from fastdeit.models.student import Student

ATTENTION = (1.35, 2.0)
"""The time of attention divided by that of its bytes, forward and backward."""


@dataclass(frozen=True)
class Device:
    """The rates that kernels reach, and the microseconds that a kernel takes to start and to
    end."""

    bytes_per_s: float = 2.8e12
    flops_per_s: float = 6.2e14
    start_us: float = 1.2


H100 = Device()


class Kernel(NamedTuple):
    """The kernels of one kind in a step: the part of the step, their number, and the bytes and
    operations of each."""

    part: str
    number: int
    nbytes: float
    flops: float = 0.0


class Shape(NamedTuple):
    """The sizes of a student that decide its kernels."""

    width: int
    depth: int
    patches: int
    tokens: int
    """The number of tokens, also of those that are not patches."""
    heads: int
    """The number of classifiers, each of which reads one token."""
    patch_values: int
    """The number of values of a patch: 3 x its pixels."""
    classes: int

    @property
    def parameters(self) -> int:
        """Return the number of parameters without biases and norms."""
        ends = self.patch_values + self.heads * self.classes + self.tokens
        return 12 * self.depth * self.width**2 + ends * self.width


def find_shape(student: Student, classes: int) -> Shape:
    """Return the sizes of a student, which may be on the meta device."""
    patches = student.grid_size**2
    heads = student.get_classifier()
    return Shape(
        student.embed_dim,
        len(student.blocks),
        patches,
        patches + student.num_prefix_tokens,
        len(heads) if isinstance(heads, tuple) else 1,
        3 * student.patch_size**2,
        classes,
    )


def product(part: str, count: int, rows: int, inner: int, columns: int) -> list[Kernel]:
    """Return the three products of a linear layer: forward, and the gradients of input and
    weight."""
    nbytes = 2.0 * (rows * inner + rows * columns + inner * columns)
    return [Kernel(part, 3 * count, nbytes, 2.0 * rows * inner * columns)]


def list_kernels(shape: Shape, batch: int) -> list[Kernel]:
    """Return the kernels of a step of a student in bf16.

    After its attention, the last block computes only the tokens that are read.
    """
    width, depth = shape.width, shape.depth
    rows, last = batch * shape.tokens, shape.heads * batch
    u = 2.0 * rows * width
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
    kernels += product("embedding and heads", 1, batch * shape.patches, shape.patch_values, width)
    kernels += product("embedding and heads", shape.heads, batch, width, shape.classes)
    return [
        *kernels,
        Kernel("attention", depth, 4 * u * ATTENTION[0]),
        Kernel("attention", depth, 8 * u * ATTENTION[1]),
        Kernel("embedding and heads", 1, 8 * u),
        Kernel("mix", 1, batch * shape.patches * shape.patch_values * 4.0),
        # gradients to fp32, norm, AdamW, weights in bf16, EMA
        Kernel("update", 4, shape.parameters * 56 / 4),
    ]


def time_ms(kernel: Kernel, device: Device = H100) -> float:
    """Return the milliseconds of the kernels of one kind."""
    seconds = max(kernel.nbytes / device.bytes_per_s, kernel.flops / device.flops_per_s)
    return kernel.number * (1e3 * seconds + device.start_us / 1e3)


def step_ms(shape: Shape, batch: int, device: Device = H100) -> float:
    """Return the estimated milliseconds of a step; batch: images of the GPU."""
    return sum(time_ms(kernel, device) for kernel in list_kernels(shape, batch))


def parts_ms(shape: Shape, batch: int, device: Device = H100) -> dict[str, float]:
    """Return the estimated milliseconds of each part of a step, the longest first."""
    parts: dict[str, float] = {}
    for kernel in list_kernels(shape, batch):
        parts[kernel.part] = parts.get(kernel.part, 0.0) + time_ms(kernel, device)
    return dict(sorted(parts.items(), key=lambda part: -part[1]))
