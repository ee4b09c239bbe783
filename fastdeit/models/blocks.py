"""The parts of a student: patch projection, attention, MLP and LayerScale, with timm's names."""

import torch
import torch.nn.functional as F
from torch import nn

from fastdeit.kernels.attention import attention
from fastdeit.kernels.gelu import gelu
from fastdeit.kernels.norm import add_norm

NORM_EPS = 1e-6


class PatchEmbed(nn.Module):
    """Project square patches, images (B, 3, H, W) → (B, N, D) in row order.

    Patches (B, N, 3·P·P), each in the order (c, y, x) of the projection's weight, need no cutting:
    then it is one matrix product.
    """

    def __init__(self, patch_size: int, embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, embed_dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if images.ndim == 3:
            return F.linear(images, self.proj.weight.flatten(1), self.proj.bias)
        return self.proj(images).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Multi-head self-attention between its two projections, (B, N, D) → (B, N, D)."""

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor, num_out: int | None = None) -> torch.Tensor:
        """Return the first num_out tokens (all by default); they attend to every token."""
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))  # (B, N, 3, H, D / H)
        return self.proj(attention(qkv)[:, :num_out])


class Mlp(nn.Module):
    """Two layers with exact GELU between them."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(gelu(F.linear(x, self.fc1.weight), self.fc1.bias))


class LayerScale(nn.Module):
    """A learned factor for each channel of a branch, which `add_norm` applies."""

    def __init__(self, dim: int, init_values: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), init_values))


class Block(nn.Module):
    """One pre-norm transformer block; the student applies the norms and the LayerScale, across
    blocks. init_values: of LayerScale; None: there is none."""

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
    scale: torch.Tensor | None,
    channels: LayerScale | None,
    layer: nn.LayerNorm,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the residual stream with a branch added, and its norm by `layer`; both (B, N, D).

    scale: (B,) fp32, of DropPath; None: 1. channels: LayerScale, if there is one.
    """
    gamma = None if channels is None else channels.gamma
    return add_norm(x, branch, scale, layer.weight, layer.bias, layer.eps, gamma)
