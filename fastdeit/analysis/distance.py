"""The mean attention distance of each head: how far from a patch the patches are that it reads.

    distance = mean over patches i of Σ_j w_ij · |p_i - p_j|,    Σ_j w_ij = 1

p is the centre of a patch, in pixels; w are the attention weights among patches. The special tokens
have no place, so they are excluded. Small distances are local, like those of a convolution.

Source: Dosovitskiy et al. 2021 (2010.11929), figure 7 and appendix D.7.
"""

from dataclasses import dataclass
from math import isqrt

import torch


@dataclass(frozen=True)
class AttentionDistance:
    """The mean attention distance over images, in pixels."""

    layers: tuple[tuple[float, ...], ...]
    """The distances by layer, then by attention head, in the order of the model."""
    uniform: float
    """The distance of a head that reads all patches alike."""


def measure_distance(weights: torch.Tensor, num_prefix_tokens: int) -> torch.Tensor:
    """Return the mean attention distance of each head, in patches: fp32 (B, H).

    weights: (B, H, N, N), rows (queries) that sum to 1; the special tokens are before the patches,
    which are a square in rows.
    """
    patches = weights[..., num_prefix_tokens:, num_prefix_tokens:]
    distances = find_distances(patches.shape[-1]).to(weights)
    # a query that reads special tokens alone has distance 0
    read = patches.sum(-1).clamp(min=torch.finfo(weights.dtype).tiny)
    return ((patches * distances).sum(-1) / read).mean(-1)


def find_distances(count: int) -> torch.Tensor:
    """Return the distances among `count` patches of a square, in patches: fp32 (count, count)."""
    places = torch.arange(count)
    side = isqrt(count)
    rows, columns = (
        place.float()[:, None] - place.float() for place in (places // side, places % side)
    )
    return torch.hypot(rows, columns)


def summarise_distance(distances: torch.Tensor, patch_size: float, count: int) -> AttentionDistance:
    """Return the mean over images.

    distances: (B, L, H), of each layer by `measure_distance`; patch_size: in pixels; count: of the
    patches.
    """
    by_layer = (distances.double().mean(0) * patch_size).tolist()
    uniform = float(find_distances(count).double().mean()) * patch_size
    return AttentionDistance(tuple(map(tuple, by_layer)), uniform)
