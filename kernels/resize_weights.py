"""Weights of `resize`: PIL's bicubic filter with antialias, in 22-bit fixed point.

Output i of an axis shows the input at c = (i + ½)·s, with s the inputs per output; it sums the
inputs nearer than 2·max(s, 1), each times f((j - c + ½) / max(s, 1)), divided by the sum of these
values, with

    f(x) = (1.5·|x| - 2.5)·x² + 1 for |x| < 1, ((|x|³ - 5·x² + 8·|x| - 4)·-½ for |x| < 2, else 0

All of it in double precision and in PIL's order of operations, then rounded to 2^-22. Source:
Pillow 12.3, src/libImaging/Resample.c (precompute_coeffs, normalize_coeffs_8bpc).
"""

import math

import torch

BITS = 22
"""Of the fraction: 32 less 8 for the byte and 2 for the sign and the overshoot."""


def places_reference(
    start: int, count: int, size: int, flip: bool, device: torch.device
) -> torch.Tensor:
    """Return the places start, start + 1, ... reflected into 0 to size - 1, int64 (count,),
    backwards if `flip`; the outermost is not repeated."""
    steps = torch.arange(count, device=device)
    period = max(2 * (size - 1), 1)
    place = ((start + (steps.flip(0) if flip else steps)).abs()) % period
    return torch.minimum(place, period - place)


def _bicubic_reference(x: torch.Tensor) -> torch.Tensor:
    x = x.abs()
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5
    return torch.where(x < 1.0, near, torch.where(x < 2.0, far, 0.0))


def weights_reference(
    in_size: int, out_size: int, places: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the first input of the n outputs at `places`, int64 (n,), and the weights of the
    inputs from it on, int32 (n, taps)."""
    scale = in_size / out_size
    stretch = max(scale, 1.0)
    support = 2.0 * stretch
    centre = (places.double() + 0.5) * scale
    first = (centre - support + 0.5).long().clamp(min=0)
    count = (centre + support + 0.5).long().clamp(max=in_size) - first
    taps = torch.arange(math.ceil(support) * 2 + 1, device=places.device)
    distance = (taps + first[:, None] - centre[:, None] + 0.5) * (1.0 / stretch)
    value = torch.where(taps < count[:, None], _bicubic_reference(distance), 0.0)
    total = torch.zeros_like(centre)
    for column in value.unbind(1):  # one after the other, as the sum is rounded at each step
        total = total + column
    share = value / total[:, None]
    return first, (share * (1 << BITS) + torch.where(share < 0, -0.5, 0.5)).int()
