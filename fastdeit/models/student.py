"""The student: DeiT, a vision transformer with a distillation token and a second head.

Parameter names and shapes are timm's (`deit_*_patch16_*`), so that weights go both ways; attention,
norms and residual sums go through `fastdeit.kernels`. The residual stream crosses block borders
through `add_norm`, which adds a branch and computes the norm that comes next: keep it so, a block
never normalises its own input. DropPath draws nothing here: the plan says which branch of which
sample is kept (plan.py). Source: Touvron et al. 2021 (2012.12877); initialisation and names as timm
1.0.31 models/deit.py.
"""

from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed
from torch import nn

from fastdeit.kernels.attention import attention
from fastdeit.kernels.gelu import gelu
from fastdeit.kernels.norm import add_norm, norm

NORM_EPS = 1e-6
INIT_STD = 0.02


class Size(NamedTuple):
    """A named student: width, depth, heads, image side, and whether it has the distillation token."""

    embed_dim: int
    depth: int
    num_heads: int
    image_size: int
    distilled: bool


WIDTHS = {"tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12)}
SIZES = {
    f"deit_{name}{'_distilled' if distilled else ''}_patch16_{image_size}": Size(
        *width, image_size, distilled
    )
    for name, width in WIDTHS.items()
    for distilled in (False, True)
    for image_size in (224, 384)
}


class PatchEmbed(nn.Module):
    """Project square patches, images (B, 3, H, W) → (B, N, D) in row order.

    Patches (B, N, 3·P·P), each in the order (c, y, x) of the projection's weight, are taken as they
    are: then it is one matrix product.
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
        """Return the first num_out tokens (all by default); every token is attended to in either
        case."""
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


class Block(nn.Module):
    """One pre-norm transformer block; the norms are applied by the student, across block borders."""

    def __init__(self, dim: int, num_heads: int, hidden_dim: int, qkv_bias: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attn = Attention(dim, num_heads, qkv_bias)
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = Mlp(dim, hidden_dim)


def _add_norm(
    x: torch.Tensor, branch: torch.Tensor, scale: torch.Tensor | None, layer: nn.LayerNorm
) -> tuple[torch.Tensor, torch.Tensor]:
    return add_norm(x, branch, scale, layer.weight, layer.bias, layer.eps)


class Student(nn.Module):
    """DeiT; images (B, 3, H, W) normalised → logits (B, K), or the pair of both heads' logits while
    training.

    drop_path_rates: the rate of each block, 0 rising linearly to drop_path (or drop_path everywhere
    when constant_drop_path); the plan draws its keep bits with them. Raises ValueError on sizes
    that do not divide.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        depth: int,
        num_heads: int,
        image_size: int = 224,
        patch_size: int = 16,
        num_classes: int = 1000,
        mlp_ratio: float = 4.0,
        distilled: bool = True,
        qkv_bias: bool = False,
        drop_path: float = 0.1,
        constant_drop_path: bool = False,
    ) -> None:
        super().__init__()
        _check_sizes(image_size, patch_size, embed_dim, num_heads, drop_path)
        self.image_size, self.patch_size, self.num_classes = image_size, patch_size, num_classes
        self.embed_dim, self.num_heads, self.distilled = embed_dim, num_heads, distilled
        self.grid_size = image_size // patch_size
        self.num_prefix_tokens = 2 if distilled else 1
        self.drop_path_rates = tuple(
            drop_path if constant_drop_path else drop_path * i / max(1, depth - 1)
            for i in range(depth)
        )

        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim))
        if distilled:
            self.dist_token = nn.Parameter(torch.empty(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(
            torch.empty(1, self.num_prefix_tokens + self.grid_size**2, embed_dim)
        )
        self.patch_embed = PatchEmbed(patch_size, embed_dim)
        self.blocks = nn.ModuleList(
            Block(embed_dim, num_heads, int(embed_dim * mlp_ratio), qkv_bias) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(embed_dim, eps=NORM_EPS)
        self.head = nn.Linear(embed_dim, num_classes)
        if distilled:
            self.head_dist = nn.Linear(embed_dim, num_classes)
        self._init_weights()

    def _init_weights(self) -> None:
        for name, parameter in self.named_parameters():
            if name in self.no_weight_decay():
                nn.init.trunc_normal_(parameter, std=INIT_STD)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=INIT_STD)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters with several dimensions that are not decayed all the same."""
        return {"pos_embed", "cls_token", "dist_token"}

    def forward(
        self, images: torch.Tensor, keep: torch.Tensor | None = None
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Logits (B, K); training a distilled student: the pair (class logits, distillation
        logits).

        images: (B, 3, H, W) in the parameters' dtype, or their patches (B, N, 3·P·P) as
        `mix_patches` makes them. keep: (B, depth, 2) bool, whether a sample keeps a block's
        attention and MLP branch, kept ones scaled by 1 / (1 - rate); None: all kept, unscaled.
        Raises ValueError when a training student with DropPath gets no keep bits, or bits of
        another shape.
        """
        logits = self.forward_heads(images, keep)
        if len(logits) == 1:
            return logits[0]
        cls_logits, dist_logits = logits
        return (cls_logits, dist_logits) if self.training else (cls_logits + dist_logits) / 2

    def forward_heads(
        self, images: torch.Tensor, keep: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ...]:
        """Logits of each head, (B, K) each, in training and evaluation: (class, distillation) or
        (class,)."""
        x = self.forward_features(images, keep)
        return (
            (self.head(x[:, 0]), self.head_dist(x[:, 1]))
            if self.distilled
            else (self.head(x[:, 0]),)
        )

    def forward_features(
        self, images: torch.Tensor, keep: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The special tokens after the last norm, (B, 1 or 2, D)."""
        scales = self._branch_scales(keep, images.shape[0])
        blocks = [cast(Block, block) for block in self.blocks]
        norms = [*(block.norm1 for block in blocks), self.norm]
        x = self._embed(images)
        y = norm(x, norms[0].weight, norms[0].bias, NORM_EPS)
        for i, block in enumerate(blocks):
            # the heads read the special tokens only: past its attention, the last block need not
            # compute the others
            num_out = self.num_prefix_tokens if i == len(blocks) - 1 else None
            attention_scale, mlp_scale = (None, None) if scales is None else scales[i].unbind(0)
            x, y = _add_norm(
                x[:, :num_out].contiguous(), block.attn(y, num_out), attention_scale, block.norm2
            )
            x, y = _add_norm(x, block.mlp(y), mlp_scale, norms[i + 1])
        return y

    def _embed(self, images: torch.Tensor) -> torch.Tensor:
        positions = self._positions(images)
        patches = self.patch_embed(images)
        tokens = (self.cls_token, self.dist_token) if self.distilled else (self.cls_token,)
        prefix = torch.cat(tokens, dim=1).expand(patches.shape[0], -1, -1)
        return torch.cat([prefix, patches], dim=1) + positions  # (B, N, D)

    def _positions(self, images: torch.Tensor) -> torch.Tensor:
        """The position embedding, in evaluation resized to images of another size."""
        if images.ndim == 3 and images.shape[1:] == (self.grid_size**2, 3 * self.patch_size**2):
            return self.pos_embed
        height, width = images.shape[-2:]
        if images.ndim == 3:
            raise ValueError(
                f"the student takes {self.grid_size**2} patches of {3 * self.patch_size**2}; got {(height, width)}"
            )
        if (height, width) == (self.image_size, self.image_size):
            return self.pos_embed
        if self.training or height % self.patch_size or width % self.patch_size:
            others = f", in evaluation multiples of {self.patch_size} too"
            raise ValueError(
                f"the student takes {self.image_size} px images{others}; got {(height, width)}"
            )
        grid = [height // self.patch_size, width // self.patch_size]
        return resample_abs_pos_embed(
            self.pos_embed, grid, num_prefix_tokens=self.num_prefix_tokens
        )

    def _branch_scales(self, keep: torch.Tensor | None, batch: int) -> torch.Tensor | None:
        """Each branch's factor per sample, (depth, 2, B) fp32; None: leave every branch as it is."""
        depth = len(self.blocks)
        if keep is None:
            if self.training and any(self.drop_path_rates):
                raise ValueError("a training step with DropPath needs the plan's keep bits")
            return None
        if keep.shape != (batch, depth, 2):
            raise ValueError(f"keep must be ({batch}, {depth}, 2), got {tuple(keep.shape)}")
        # made on the device: a table copied from the host every step would make the step wait
        rates = torch.linspace(
            self.drop_path_rates[0], self.drop_path_rates[-1], depth, device=keep.device
        )
        return (keep.permute(1, 2, 0) / (1 - rates)[:, None, None]).contiguous()


def _check_sizes(
    image_size: int, patch_size: int, embed_dim: int, num_heads: int, drop_path: float
) -> None:
    if image_size % patch_size:
        raise ValueError(
            f"image size {image_size} is not a multiple of the patch size {patch_size}"
        )
    if embed_dim % num_heads:
        raise ValueError(f"width {embed_dim} is not a multiple of {num_heads} heads")
    if not 0 <= drop_path < 1:
        raise ValueError(f"drop path must lie in [0, 1), got {drop_path}")


def build_student(name: str, *, num_classes: int, **overrides: object) -> Student:
    """Build a named student with random weights; overrides are `Student`'s keywords and win over
    the name's sizes.

    Raises ValueError listing the names when there is none of this name.
    """
    if name not in SIZES:
        raise ValueError(f"unknown student {name!r}: choose from {', '.join(SIZES)}")
    return Student(**{**SIZES[name]._asdict(), "num_classes": num_classes, **overrides})  # type: ignore[arg-type]
