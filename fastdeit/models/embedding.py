"""The first layer of the student: patches, special tokens, position embedding; timm's names."""

import torch
from timm.layers import resample_abs_pos_embed
from torch import nn

from fastdeit.models.blocks import PatchEmbed
from fastdeit.models.sizes import check_patches


class TokenEmbedding(nn.Module):
    """The first layer of a student, before its blocks: images (B, 3, H, W) → tokens (B, N, D).

    Tokens are in the order class, distillation, registers, patches. no_embed_class: only the
    patches have a position embedding.
    """

    def __init__(
        self,
        embed_dim: int,
        image_size: int,
        patch_size: int,
        distilled: bool,
        no_embed_class: bool,
        reg_tokens: int,
    ) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.image_size = image_size
        self.patch_size = patch_size
        self.distilled = distilled
        self.no_embed_class = no_embed_class
        self.num_reg_tokens = reg_tokens
        self.grid_size = image_size // patch_size
        self.num_head_tokens = 2 if distilled else 1
        """The number of tokens that a head reads, the first ones."""
        self.num_prefix_tokens = self.num_head_tokens + reg_tokens
        self.num_prefix_positions = 0 if no_embed_class else self.num_prefix_tokens
        """The number of positions in the position embedding before those of the patches."""
        self._add_tokens()
        self.patch_embed = PatchEmbed(patch_size, embed_dim)

    def _add_tokens(self) -> None:
        """Add the special tokens and the position embedding, still without values."""
        width = self.embed_dim
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        if self.distilled:
            self.dist_token = nn.Parameter(torch.empty(1, 1, width))
        if self.num_reg_tokens:
            self.reg_token = nn.Parameter(torch.empty(1, self.num_reg_tokens, width))
        num_positions = self.num_prefix_positions + self.grid_size**2
        self.pos_embed = nn.Parameter(torch.empty(1, num_positions, width))

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """Return the tokens before the first block, (B, N, D), of images (B, 3, H, W) or of their
        patches (B, N, 3·P·P). Raises ValueError for other sizes than `Student` takes."""
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
        """Return the position embedding, which is resized in evaluation for images of another
        size."""
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

    @torch.no_grad()
    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Resize the position embedding; argument and errors as of `Student.set_input_size`."""
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        if height != width:
            raise ValueError(f"img_size must be that of a square (got {height} x {width})")
        check_patches(height, self.patch_size)
        grid = height // self.patch_size
        self.pos_embed = nn.Parameter(self._resample(grid, grid), self.pos_embed.requires_grad)
        self.image_size = height
        self.grid_size = grid
