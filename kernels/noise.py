"""Noise of RandomErasing: standard normal numbers that depend only on a key and on the pixel's
number in the erased box; the same bits as fastdeit.data.augment.noise. `normalise` and `mix_pixels`
call it.

Philox-4x32-10 (Salmon et al., SC 2011), its key the sample's 64 bits, its counter the pixel's
number; then Box and Muller's transform (1958) in fp64, with logarithm, sine and cosine as series. A
product and a sum must be rounded separately, not fused, so a kernel that calls `normals` is
launched with `EXACT`.
"""

import torch
import triton
import triton.language as tl

from fastdeit.kernels.augment_kernels.ops import sqrt_reference

_WORD = 0xFFFFFFFF


# arithmetic alone, so that the reference runs the same lines in plain torch
@triton.jit
def _log_series(power, m):
    """Return log(2^power * m), m near 1: 2 artanh((m - 1) / (m + 1)) + power * log 2."""
    s = (m - 1.0) / (m + 1.0)
    t = s * s
    tail = t * (1 / 9 + t * (1 / 11 + t * (1 / 13 + t * (1 / 15))))
    near = 2.0 * s * (1.0 + t * (1 / 3 + t * (1 / 5 + t * (1 / 7 + tail))))
    return power * 0.6931471805599453 + near


@triton.jit
def _eighth_turn(place):
    """Return (cos + sin) / sqrt 2 and (cos - sin) / sqrt 2 of an angle; place: the angle in quarter
    turns, -1/2 to 1/2."""
    angle = place * 1.5707963267948966
    t = angle * angle
    sin = 1 / 362880 - t * (1 / 39916800 - t * (1 / 6227020800))
    sin = angle * (1.0 - t * (1 / 6 - t * (1 / 120 - t * (1 / 5040 - t * sin))))
    cos = 1 / 40320 - t * (1 / 3628800 - t * (1 / 479001600 - t * (1 / 87178291200)))
    cos = 1.0 - t * (0.5 - t * (1 / 24 - t * (1 / 720 - t * cos)))
    return 0.7071067811865476 * (cos + sin), 0.7071067811865476 * (cos - sin)


def philox_reference(pixel: torch.Tensor, key: torch.Tensor) -> list[torch.Tensor]:
    """Return four words of 32 bits, as int64, for the counter (pixel, 0, 0, 0); both int64."""
    c0, c1, c2, c3 = pixel, *[torch.zeros_like(pixel)] * 3
    k0, k1 = key >> 32 & _WORD, key & _WORD
    for _ in range(10):
        left, right = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1 = (right >> 32 & _WORD) ^ c1 ^ k0, right & _WORD
        c2, c3 = (left >> 32 & _WORD) ^ c3 ^ k1, left & _WORD
        k0, k1 = k0 + 0x9E3779B9 & _WORD, k1 + 0xBB67AE85 & _WORD
    return [c0, c1, c2, c3]


def _radius_reference(word: torch.Tensor) -> torch.Tensor:
    m, power = torch.frexp((word.double() + 0.5) * 2.0**-32)
    is_low = m <= 0.7071067811865476
    log = _log_series.fn(power.double() - is_low.double(), torch.where(is_low, 2.0 * m, m))
    return sqrt_reference(-2.0 * log)


def _direction_reference(word: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    place = (((word & 0x3FFFFFFF).double() + 0.5) * 2.0**-30) - 0.5
    across, along = _eighth_turn.fn(place)
    turn = word >> 30
    x = torch.where(turn & 1 == 1, across, along)
    y = torch.where(turn & 1 == 1, along, across)
    return torch.where((turn == 1) | (turn == 2), -x, x), torch.where(turn >= 2, -y, y)


def noise_reference(pixel: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """Return red, green and blue, float32 (3, ...), in plain torch.

    pixel: int64 (...), numbers in the box; key: int64, of a shape that broadcasts.
    """
    first, second, third, fourth = philox_reference(pixel, key)
    x, y = _direction_reference(second)
    z, _ = _direction_reference(fourth)
    radius = _radius_reference(first)
    return torch.stack((radius * x, radius * y, _radius_reference(third) * z)).float()


@triton.jit
def _radius(word):
    """Return sqrt(-2 log u) of u = (word + 1/2) / 2^32."""
    bits = (word.to(tl.float64) + 0.5).to(tl.int64, bitcast=True)
    power = ((bits >> 52) - 1055).to(tl.float64)
    mantissa = bits & 0xFFFFFFFFFFFFF
    m = (mantissa | 0x3FF0000000000000).to(tl.float64, bitcast=True)
    # m > sqrt 2; Triton would round a number to compare with to fp32
    is_high = mantissa > 0x6A09E667F3BCD
    log = _log_series(tl.where(is_high, power + 1.0, power), tl.where(is_high, m * 0.5, m))
    return tl.sqrt(-2.0 * log)


@triton.jit
def _direction(word):
    """Return cos and sin of 2 pi u: the two highest bits are the quarter turn, the others an angle
    about its middle."""
    place = ((word & 0x3FFFFFFF).to(tl.float64) + 0.5) * 2.0**-30 - 0.5
    across, along = _eighth_turn(place)
    turn = word >> 30
    x = tl.where((turn & 1) == 1, across, along)
    y = tl.where((turn & 1) == 1, along, across)
    return tl.where((turn == 1) | (turn == 2), -x, x), tl.where(turn >= 2, -y, y)


@triton.jit
def normals(pixel, key):
    """Return red, green and blue, fp32, of pixels by number, int32; key: int64."""
    zero = (pixel * 0).to(tl.uint32)
    high = (key >> 32).to(tl.uint32)
    low = key.to(tl.uint32)
    first, second, third, fourth = tl.philox_impl(pixel.to(tl.uint32), zero, zero, zero, high, low)
    radius = _radius(first)
    x, y = _direction(second)
    z, _ = _direction(fourth)
    blue = _radius(third) * z
    return (radius * x).to(tl.float32), (radius * y).to(tl.float32), blue.to(tl.float32)
