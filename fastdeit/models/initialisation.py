"""The student's initial weights, equal on every processor, device and version of torch.

Each parameter has a stream of random words of its own, NumPy's Philox with the key (seed, parameter
name), so no weight depends on the order in which layers are built. torch's generators cannot be
used: `trunc_normal_` draws other numbers in 2.15 than in 2.11, and a GPU has another generator than
a CPU.

Words become normal values by the inverse distribution function, computed with + - * / and sqrt
alone. By IEEE 754 these are rounded alike everywhere, but a library's logarithm or erfinv may
differ in its last bit. Sources: Wichura, "Algorithm AS 241", Applied Statistics 37 (1988), PPND7;
Salmon et al., SC 2011 (Philox).
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import nn

INIT_STD = 0.02
"""The standard deviation of tokens, position embedding and weights of linear layers."""
REGISTER_STD = 1e-6
"""The standard deviation of registers."""

_CHUNK = 1 << 15  # words at a time: the arrays stay in a processor's cache
_LN2 = 0.6931471805599453
_SQRT_HALF = 0.7071067811865476

# AS 241, PPND7: numerators and denominators, from the highest power down. Its third region begins
# below exp(-25) and the smallest probability here is 2^-33, about exp(-22.9).
_CENTRE = (
    (59.109374720, 159.29113202, 50.434271938, 3.3871327179),
    (67.187563600, 78.757757664, 17.895169469, 1.0),
)
_TAIL = (
    (0.17023821103, 1.3067284816, 2.7568153900, 1.4234372777),
    (0.12021132975, 0.73700164250, 1.0),
)
_CENTRE_HALF_WIDTH = 0.425
_CENTRE_SQUARE = 0.180625

Transform = Callable[[np.ndarray], np.ndarray]
"""A function from words (N,), uint32, to values (N,), float64."""


@torch.no_grad()
def initialise_student(student: nn.Module, seed: int) -> None:
    """Set every parameter of a student: N(0, 0.02²) for the tokens, the position embedding and the
    weights of linear layers; N(0, 1e-6²) for registers; U(±1 / √fan_in), torch's default, for the
    patch projection; norms 1 and 0; other biases 0. LayerScale has its value already. Parameters on
    the meta device are skipped.

    timm cuts the normal distribution at ±2, which is 100 standard deviations: no value is cut.
    """
    for name, parameter in student.named_parameters():
        if parameter.is_meta or name.endswith("gamma"):
            continue
        if name.startswith("patch_embed."):
            fan_in = student.get_parameter("patch_embed.proj.weight")[0].numel()
            parameter.copy_(draw_uniform(seed, name, parameter.shape, 1 / math.sqrt(fan_in)))
        elif parameter.ndim > 1:
            std = REGISTER_STD if name == "reg_token" else INIT_STD
            parameter.copy_(draw_normal(seed, name, parameter.shape, std))
        else:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)


def draw_normal(seed: int, name: str, shape: torch.Size, std: float) -> torch.Tensor:
    """Return fp32 values of N(0, std²) with this shape, within ±6.3 std."""
    return _draw(seed, name, shape, lambda words: std * _normal(words))


def draw_uniform(seed: int, name: str, shape: torch.Size, bound: float) -> torch.Tensor:
    """Return fp32 values of the uniform distribution over [-bound, bound] with this shape."""
    return _draw(seed, name, shape, lambda words: 2 * bound * _centred(words))


def _draw(seed: int, name: str, shape: torch.Size, transform: Transform) -> torch.Tensor:
    values = np.empty(shape.numel(), np.float32)
    start = 0
    for words in _random_words(seed, name, values.size):
        values[start : start + words.size] = transform(words)
        start += words.size
    return torch.from_numpy(values).view(shape)


def _random_words(seed: int, name: str, count: int) -> Iterator[np.ndarray]:
    """Yield `count` words, uint32, in chunks."""
    key = hashlib.sha256(f"{seed} {name}".encode()).digest()[:16]
    philox = np.random.Philox(key=int.from_bytes(key, "little"))
    for start in range(0, count, _CHUNK):
        size = min(_CHUNK, count - start)
        words = philox.random_raw(-(-size // 2)).astype("<u8", copy=False).view("<u4")
        yield words[:size]


def _centred(words: np.ndarray) -> np.ndarray:
    """Return (word + 1/2) / 2^32 - 1/2, exact: between -1/2 and 1/2, never 0 or an end."""
    return (words.astype(np.float64) - (2.0**31 - 0.5)) * 2.0**-32


def _normal(words: np.ndarray) -> np.ndarray:
    """Return standard normal values; the relative error is below 2e-7."""
    q = _centred(words)
    values = q * _ratio(_CENTRE, _CENTRE_SQUARE - q * q)
    tail = np.flatnonzero(np.abs(q) > _CENTRE_HALF_WIDTH)
    r = np.sqrt(-_log(0.5 - np.abs(q[tail]))) - 1.6
    values[tail] = np.copysign(_ratio(_TAIL, r), q[tail])
    return values


def _log(x: np.ndarray) -> np.ndarray:
    """Return the natural logarithm of positive numbers, to 1e-10, with + - * / alone."""
    mantissa, exponent = np.frexp(x)
    # log(m) = log(√½) + 2 artanh(s); the mantissa is from 1/2 to 1, so |s| is at most 0.172
    s = (mantissa - _SQRT_HALF) / (mantissa + _SQRT_HALF)
    odd = [2 / power for power in (11, 9, 7, 5, 3, 1)]
    return (exponent - 0.5) * _LN2 + s * _polynomial(odd, s * s)


def _ratio(parts: tuple[tuple[float, ...], tuple[float, ...]], x: np.ndarray) -> np.ndarray:
    numerator, denominator = parts
    return _polynomial(numerator, x) / _polynomial(denominator, x)


def _polynomial(coefficients: Sequence[float], x: np.ndarray) -> np.ndarray:
    """Evaluate a polynomial, its coefficients from the highest power down."""
    value = np.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        value *= x
        value += coefficient
    return value
