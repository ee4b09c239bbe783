"""The layers of a student: patch projection, attention, MLP and LayerScale, with timm's names."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from fastdeit.kernels.attention import attention
from fastdeit.kernels.backend import is_fused
from fastdeit.kernels.mlp import mlp
from fastdeit.kernels.norm import add_norm

NORM_EPS = 1e-6
"""The eps of every LayerNorm, as in timm."""


class PatchEmbed(nn.Module):
    """Projection of square patches, images (B, 3, H, W) → (B, N, D) in row order.

    Patches (B, N, 3·P·P), each in the order (c, y, x) of the projection's weight, need no cutting:
    then the projection is one matrix product.
    """

    def __init__(self, patch_size: int, embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, embed_dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if images.ndim == 3:
            return F.linear(images, self.proj.weight.flatten(1), self.proj.bias)
        return self.proj(images).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Multi-head self-attention between its two projections, (B, N, D) → (B, N, D).

    With kernels the bias of `proj` is not in the output: `add_branch` adds it.
    """

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor, num_out: int | None = None) -> torch.Tensor:
        """Return the first num_out tokens (all by default); they attend to every token."""
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))  # (B, N, 3, H, D / H)
        attended = attention(qkv)[:, :num_out]
        return F.linear(attended, self.proj.weight) if is_fused(x) else self.proj(attended)


class Mlp(nn.Module):
    """Two layers with exact GELU between them, (B, N, D) → (B, N, D).

    With kernels the bias of `fc2` is not in the output: `add_branch` adds it.
    """

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if is_fused(x):
            return mlp(x, self.fc1.weight, self.fc1.bias, self.fc2.weight)
        return self.fc2(F.gelu(self.fc1(x)))


class LayerScale(nn.Module):
    """A learned factor for each channel of a branch, which `add_norm` applies."""

    def __init__(self, dim: int, init_values: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), init_values))


class Block(nn.Module):
    """One pre-norm transformer block; the student applies the norms and the LayerScale, across
    blocks. init_values: those of LayerScale; None: there is none."""

    def __init__(
        self, dim: int, num_heads: int, hidden_dim: int, qkv_bias: bool, init_values: float | None
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attn = Attention(dim, num_heads, qkv_bias)
        self.ls1 = None if init_values is None else LayerScale(dim, init_values)
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = Mlp(dim, hidden_dim)
        self.ls2 = None if init_values is None else LayerScale(dim, init_values)


def add_branch(
    x: torch.Tensor,
    branch: torch.Tensor,
    projection: nn.Linear,
    scale: torch.Tensor | None,
    channels: LayerScale | None,
    layer: nn.LayerNorm,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the residual stream with a branch added, and its norm by `layer`; both (B, N, D).

    projection: the last layer of the branch; with kernels its bias is added here, so that its
    gradient comes with the norm's. scale: (B,) fp32, of DropPath; None: 1. channels: LayerScale, if
    there is one.
    """
    gamma = None if channels is None else channels.gamma
    bias = projection.bias if is_fused(x) else None
    return add_norm(x, branch, scale, layer.weight, layer.bias, layer.eps, gamma, bias)


def spread_drop_path(rate: float, depth: int, constant: bool) -> tuple[float, ...]:
    """Return the rate of each block: `rate` everywhere, or from 0 linearly to `rate`."""
    if constant:
        return (rate,) * depth
    return tuple(rate * i / max(1, depth - 1) for i in range(depth))


def scale_branches(
    rates: Sequence[float], keep: torch.Tensor | None, batch: int, device: torch.device
) -> torch.Tensor:
    """Return the factors of the branches by DropPath, fp32 (depth, 2, B).

    rates: of each block, linear; keep: bool (B, depth, 2), which branches are kept; None: drawn
    from torch's generator. Raises ValueError for a mask of another shape.
    """
    # made on the device: a copy from the host at every step would make the step wait
    spread = torch.linspace(rates[0], rates[-1], len(rates), device=device)
    if keep is None:
        keep = torch.rand(batch, len(rates), 2, device=device) >= spread[:, None]
    if keep.shape != (batch, len(rates), 2):
        raise ValueError(f"keep must be ({batch}, {len(rates)}, 2) (got {tuple(keep.shape)})")
    return (keep.permute(1, 2, 0) / (1 - spread)[:, None, None]).contiguous()
