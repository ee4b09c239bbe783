"""The student: DeiT, a vision transformer with a distillation token and a second head; DeiT III.

Parameter names and shapes are timm's (`deit_*`, `deit3_*`), so weights can be exchanged; attention,
norms and residual sums use `fastdeit.kernels`. `add_norm` adds a branch to the residual stream and
computes the next norm, also across blocks: so a block never normalises its own input. DropPath
draws nothing here: the plan decides which branch of which sample is kept (plan/plan.py).

DeiT III has a QKV bias, LayerScale, no position embedding on the class token, and one rate of
DropPath for all blocks. Sources: Touvron et al. 2021 (2012.12877) and 2022 (2204.07118); names as
timm 1.0.31 models/deit.py; registers: Darcet et al. 2023
(2309.16588).
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed
from torch import nn

from fastdeit.kernels.attention import attention
from fastdeit.kernels.gelu import gelu
from fastdeit.kernels.norm import add_norm, norm
from fastdeit.models.initialisation import initialise_student
from fastdeit.models.sizes import SIZES

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


def _add_norm(
    x: torch.Tensor,
    branch: torch.Tensor,
    scale: torch.Tensor | None,
    channels: LayerScale | None,
    layer: nn.LayerNorm,
) -> tuple[torch.Tensor, torch.Tensor]:
    gamma = None if channels is None else channels.gamma
    return add_norm(x, branch, scale, layer.weight, layer.bias, layer.eps, gamma)


class Student(nn.Module):
    """DeiT: normalised images (B, 3, H, W) → logits (B, K); in training the logits of both heads.

    drop_path_rates: the rate of each block, from 0 linearly to drop_path (or drop_path everywhere
    with constant_drop_path); the plan draws the masks with them. init_values: of LayerScale; None:
    no LayerScale. no_embed_class: only the patches have a position embedding. reg_tokens: number of
    registers. Tokens are in the order class, distillation, registers, patches. seed: of the initial
    weights (initialisation.py). Raises ValueError for sizes that do not divide.
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
        init_values: float | None = None,
        no_embed_class: bool = False,
        reg_tokens: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        _check_sizes(image_size, patch_size, embed_dim, num_heads, drop_path)
        self.image_size = image_size
        self.patch_size = patch_size
        self.num_classes = num_classes
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.distilled = distilled
        self.grid_size = image_size // patch_size
        self.init_values = init_values
        self.no_embed_class = no_embed_class
        self.num_reg_tokens = reg_tokens
        self.num_head_tokens = 2 if distilled else 1
        """Tokens that a head reads: the first ones."""
        self.num_prefix_tokens = self.num_head_tokens + reg_tokens
        self.num_prefix_positions = 0 if no_embed_class else self.num_prefix_tokens
        """Of the position embedding, before those of the patches."""
        self.drop_path_rates = _spread_drop_path(drop_path, depth, constant_drop_path)
        num_positions = self.num_prefix_positions + self.grid_size**2
        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim))
        if distilled:
            self.dist_token = nn.Parameter(torch.empty(1, 1, embed_dim))
        if reg_tokens:
            self.reg_token = nn.Parameter(torch.empty(1, reg_tokens, embed_dim))
        self.pos_embed = nn.Parameter(torch.empty(1, num_positions, embed_dim))
        self.patch_embed = PatchEmbed(patch_size, embed_dim)
        sizes = (embed_dim, num_heads, int(embed_dim * mlp_ratio), qkv_bias, init_values)
        self.blocks = nn.ModuleList(Block(*sizes) for _ in range(depth))
        self.norm = nn.LayerNorm(embed_dim, eps=NORM_EPS)
        self.head = nn.Linear(embed_dim, num_classes)
        if distilled:
            self.head_dist = nn.Linear(embed_dim, num_classes)
        initialise_student(self, seed)

    def no_weight_decay(self) -> set[str]:
        """Return the parameters with several dimensions that have no weight decay."""
        return {"pos_embed", "cls_token", "dist_token", "reg_token"}

    @torch.no_grad()
    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Resize the position embedding in place, by timm's filter, for images of another size.

        img_size: the side in pixels, or height and width, which are equal. Raises ValueError unless
        it is a multiple of the patch size.
        """
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        if height != width:
            raise ValueError(f"img_size must be that of a square (got {height} x {width})")
        _check_sizes(height, self.patch_size, self.embed_dim, self.num_heads, 0.0)
        grid = height // self.patch_size
        self.pos_embed = nn.Parameter(self._resample(grid, grid), self.pos_embed.requires_grad)
        self.image_size = height
        self.grid_size = grid

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return timm's patterns for the depth of each parameter, for its layer decay: embedding,
        blocks, the final norm with the last block; what matches none, the heads, is on top."""
        blocks = [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))]
        stem = r"^cls_token|dist_token|reg_token|pos_embed|patch_embed"
        return {"stem": stem, "blocks": blocks}

    def forward(
        self, images: torch.Tensor, keep: torch.Tensor | None = None
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Return logits (B, K); in training of a distilled student the pair (class logits,
        distillation logits).

        images: (B, 3, H, W) in the parameters' dtype, or their patches (B, N, 3·P·P) from
        `mix_patches`. keep: the DropPath mask (B, depth, 2) bool: does a sample keep a block's
        attention and MLP branch; a kept branch is scaled by 1 / (1 - rate). None: all kept,
        unscaled. Raises ValueError for a mask of another shape, and for None in training with
        DropPath.
        """
        logits = self.forward_heads(images, keep)
        if len(logits) == 1:
            return logits[0]
        cls_logits, dist_logits = logits
        return (cls_logits, dist_logits) if self.training else (cls_logits + dist_logits) / 2

    def forward_heads(
        self, images: torch.Tensor, keep: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ...]:
        """Return the logits of each head, (B, K) each, in training and evaluation: (class,
        distillation) or (class,)."""
        x = self.forward_features(images, keep)
        cls_logits = self.head(x[:, 0])
        return (cls_logits, self.head_dist(x[:, 1])) if self.distilled else (cls_logits,)

    def forward_features(
        self, images: torch.Tensor, keep: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the tokens that the heads read after the last norm, (B, 1 or 2, D)."""
        scales = self._branch_scales(keep, images.shape[0])
        blocks = [cast(Block, block) for block in self.blocks]
        norms = [*(block.norm1 for block in blocks), self.norm]
        x = self._embed(images)
        y = norm(x, norms[0].weight, norms[0].bias, NORM_EPS)
        for i, block in enumerate(blocks):
            # the heads read their own tokens only: the last block computes the other tokens no
            # further than its attention
            num_out = self.num_head_tokens if i == len(blocks) - 1 else None
            attention_scale, mlp_scale = (None, None) if scales is None else scales[i].unbind(0)
            x = x[:, :num_out].contiguous()
            x, y = _add_norm(x, block.attn(y, num_out), attention_scale, block.ls1, block.norm2)
            x, y = _add_norm(x, block.mlp(y), mlp_scale, block.ls2, norms[i + 1])
        return y

    def _embed(self, images: torch.Tensor) -> torch.Tensor:
        positions = self._positions(images)
        patches = self.patch_embed(images)
        tokens: list[torch.Tensor] = [self.cls_token]
        if self.distilled:
            tokens.append(self.dist_token)
        if self.num_reg_tokens:
            tokens.append(self.reg_token)
        prefix = torch.cat(tokens, dim=1).expand(patches.shape[0], -1, -1)
        if self.no_embed_class:
            return torch.cat([prefix, patches + positions], dim=1)  # (B, N, D)
        return torch.cat([prefix, patches], dim=1) + positions

    def _positions(self, images: torch.Tensor) -> torch.Tensor:
        """Return the position embedding, in evaluation resized for images of another size."""
        height, width = images.shape[-2:]
        if images.ndim == 3:
            patches = (self.grid_size**2, 3 * self.patch_size**2)
            if (height, width) != patches:
                rule = f"must be {patches[0]} patches of {patches[1]} values"
                raise ValueError(f"images {rule} (got {(height, width)})")
            return self.pos_embed
        if (height, width) == (self.image_size, self.image_size):
            return self.pos_embed
        if self.training or height % self.patch_size or width % self.patch_size:
            rule = f"{self.image_size} px a side, in evaluation also multiples of {self.patch_size}"
            raise ValueError(f"images must be {rule} (got {(height, width)})")
        return self._resample(height // self.patch_size, width // self.patch_size)

    def _resample(self, height: int, width: int) -> torch.Tensor:
        """Return the position embedding for a grid of patches."""
        return resample_abs_pos_embed(
            self.pos_embed, [height, width], num_prefix_tokens=self.num_prefix_positions
        )

    def _branch_scales(self, keep: torch.Tensor | None, batch: int) -> torch.Tensor | None:
        """Return each branch's factor per sample, (depth, 2, B) fp32; None: all are 1."""
        depth = len(self.blocks)
        if keep is None:
            if self.training and any(self.drop_path_rates):
                raise ValueError("keep must be the plan's DropPath mask in training (got None)")
            return None
        if keep.shape != (batch, depth, 2):
            raise ValueError(f"keep must be ({batch}, {depth}, 2) (got {tuple(keep.shape)})")
        # made on the device: a copy from the host at every step would make the step wait
        first, last = self.drop_path_rates[0], self.drop_path_rates[-1]
        rates = torch.linspace(first, last, depth, device=keep.device)
        return (keep.permute(1, 2, 0) / (1 - rates)[:, None, None]).contiguous()


def _spread_drop_path(rate: float, depth: int, constant: bool) -> tuple[float, ...]:
    """Return the rate of each block: `rate` everywhere, or from 0 linearly to `rate`."""
    if constant:
        return (rate,) * depth
    return tuple(rate * i / max(1, depth - 1) for i in range(depth))


def _check_sizes(
    image_size: int, patch_size: int, embed_dim: int, num_heads: int, drop_path: float
) -> None:
    if image_size % patch_size:
        raise ValueError(f"image_size must be a multiple of {patch_size} (got {image_size})")
    if embed_dim % num_heads:
        raise ValueError(f"embed_dim must be a multiple of {num_heads} heads (got {embed_dim})")
    if not 0 <= drop_path < 1:
        raise ValueError(f"drop_path must be 0 or more, below 1 (got {drop_path})")


def build_student(name: str, *, num_classes: int, **overrides: object) -> Student:
    """Build a named student with the initial weights of a seed.

    overrides: keywords of `Student` (seed, drop_path, ...), which replace the name's sizes. Raises
    ValueError, listing the names, for an unknown name.
    """
    if name not in SIZES:
        raise ValueError(f"the student must be one of {', '.join(SIZES)} (got {name!r})")
    return Student(**{**SIZES[name]._asdict(), "num_classes": num_classes, **overrides})  # type: ignore[arg-type]
