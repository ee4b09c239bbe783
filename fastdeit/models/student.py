"""The student: DeiT, a vision transformer with a distillation token and a second head; DeiT III.

Parameter names and shapes are timm's (`deit_*`, `deit3_*`), so weights can be exchanged; attention,
norms and residual sums use `fastdeit.kernels`. `add_norm` adds a branch to the residual stream and
computes the next norm, also across blocks: so a block never normalises its own input. In a run the
plan draws DropPath: which branch of which sample is kept (plan/plan.py). The methods are those of
timm's models, so a student can stand in for a timm model in another training loop.

DeiT III has a QKV bias, LayerScale, no position embedding on the class token, and one rate of
DropPath for all blocks. Sources: Touvron et al. 2021 (2012.12877) and 2022 (2204.07118); names as
timm 1.0.31 models/deit.py; registers: Darcet et al. 2023 (2309.16588).
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn
from torch.utils.checkpoint import checkpoint

from fastdeit.kernels.norm import norm
from fastdeit.models.blocks import (
    NORM_EPS,
    Block,
    add_branch,
    scale_branches,
    spread_drop_path,
)
from fastdeit.models.embedding import TokenEmbedding
from fastdeit.models.initialisation import initialise_student
from fastdeit.models.sizes import SIZES, check_sizes


class Student(TokenEmbedding):
    """DeiT: normalised images (B, 3, H, W) → logits (B, K); in training the logits of both heads.

    drop_path_rates: the rate of each block, from 0 linearly to drop_path (or drop_path everywhere
    with constant_drop_path); the plan draws the masks with them. init_values: of LayerScale; None:
    no LayerScale. no_embed_class: only the patches have a position embedding. reg_tokens: number of
    registers. Tokens are in the order class, distillation, registers, patches. seed: of the initial
    weights (initialisation.py). num_classes: 0 is without heads. Raises ValueError for sizes that
    do not divide. Attributes as in timm: num_classes, num_features, embed_dim, num_prefix_tokens,
    pretrained_cfg, and distilled_training (False: in training, too, the mean of both heads).
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
        check_sizes(image_size, patch_size, embed_dim, num_heads, drop_path)
        super().__init__(embed_dim, image_size, patch_size, distilled, no_embed_class, reg_tokens)
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = embed_dim
        self.num_heads = num_heads
        self.init_values = init_values
        self.drop_path_rates = spread_drop_path(drop_path, depth, constant_drop_path)
        sizes = (embed_dim, num_heads, int(embed_dim * mlp_ratio), qkv_bias, init_values)
        self.blocks = nn.ModuleList(Block(*sizes) for _ in range(depth))
        self.norm = nn.LayerNorm(embed_dim, eps=NORM_EPS)
        self._add_heads(num_classes)
        self.distilled_training = True
        self.grad_checkpointing = False
        self.pretrained_cfg = self._describe()
        self._seed = seed
        initialise_student(self, seed)

    def _describe(self) -> dict[str, Any]:
        """Return what timm stores with a model: input, preprocessing, names of its first and last
        layers."""
        return {
            "num_classes": self.num_classes,
            "input_size": (3, self.image_size, self.image_size),
            "fixed_input_size": True,
            "crop_pct": 0.9,
            "interpolation": "bicubic",
            "mean": IMAGENET_DEFAULT_MEAN,
            "std": IMAGENET_DEFAULT_STD,
            "first_conv": "patch_embed.proj",
            "classifier": ("head", "head_dist") if self.distilled else "head",
        }

    def no_weight_decay(self) -> set[str]:
        """Return the names of the parameters with several dimensions that have no weight decay."""
        return {"pos_embed", "cls_token", "dist_token", "reg_token"}

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Resize the position embedding in place, by timm's filter, for images of another size.

        img_size: the side in pixels, or height and width, which are equal. Raises ValueError unless
        the side is a multiple of the patch size.
        """
        super().set_input_size(img_size)
        self.pretrained_cfg["input_size"] = (3, self.image_size, self.image_size)

    def get_classifier(self) -> nn.Module | tuple[nn.Module, nn.Module]:
        """Return the head, or both heads, as timm does."""
        return (self.head, self.head_dist) if self.distilled else self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the heads by ones for other classes, with the initial weights of the seed; 0: by
        none, so that the model returns the features (B, D). global_pool: "token" or None. Raises
        ValueError for another one."""
        if global_pool not in (None, "token"):
            raise ValueError(f"global_pool must be token or None (got {global_pool!r})")
        names = ("head", "head_dist") if self.distilled else ("head",)
        heads = nn.ModuleDict({name: self._make_head(num_classes) for name in names})
        initialise_student(heads, self._seed)
        for name, head in heads.items():
            self.add_module(name, head.to(self.cls_token).train(self.training))
        self.num_classes = num_classes
        self.pretrained_cfg["num_classes"] = num_classes

    def _add_heads(self, num_classes: int) -> None:
        self.head = self._make_head(num_classes)
        if self.distilled:
            self.head_dist = self._make_head(num_classes)

    def _make_head(self, num_classes: int) -> Any:
        return nn.Linear(self.embed_dim, num_classes) if num_classes else nn.Identity()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Set whether the blocks are computed again in the backward pass, in place of storing their
        activations."""
        self.grad_checkpointing = enable

    def set_distilled_training(self, enable: bool = True) -> None:
        """Set whether `forward` returns the logits of both heads in training; False: their mean, as
        in evaluation."""
        self.distilled_training = enable

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
        `mix_patches`. keep: the DropPath mask (B, depth, 2) bool: True where a sample keeps a
        block's attention branch and MLP branch; a kept branch is scaled by 1 / (1 - rate). None: in
        training the mask is drawn with torch's generator, in evaluation all branches are kept,
        unscaled. Raises ValueError for a mask of another shape.
        """
        return self._join(self.forward_heads(images, keep))

    def _join(self, outputs: tuple[torch.Tensor, ...]) -> Any:
        """Return the output of the one head; or of both, as a pair or their mean."""
        if len(outputs) == 1:
            return outputs[0]
        is_pair = self.training and self.distilled_training
        return outputs if is_pair else (outputs[0] + outputs[1]) / 2

    def forward_heads(
        self, images: torch.Tensor, keep: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ...]:
        """Return the logits of each head, (B, K) each, in training and evaluation: (class,
        distillation) or (class,)."""
        return self._apply_heads(self._run_blocks(images, keep, self.num_head_tokens))

    def _apply_heads(self, tokens: torch.Tensor) -> tuple[torch.Tensor, ...]:
        cls_logits = self.head(tokens[:, 0])
        return (cls_logits, self.head_dist(tokens[:, 1])) if self.distilled else (cls_logits,)

    def forward_features(
        self, images: torch.Tensor, keep: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return all tokens after the last norm, (B, N, D), as timm does."""
        return self._run_blocks(images, keep, None)

    def forward_head(self, tokens: torch.Tensor, pre_logits: bool = False) -> Any:
        """Return what `forward` returns, from the tokens of `forward_features`; pre_logits: the
        features (B, D) in place of logits; with two heads, the mean of both."""
        if not pre_logits:
            return self._join(self._apply_heads(tokens))
        return tokens[:, : self.num_head_tokens].mean(1)

    def forward_intermediates(
        self,
        images: torch.Tensor,
        indices: int | Sequence[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Return all tokens after the last norm, (B, N, D), and a list of the patches after each
        block, before any norm, as timm does; intermediates_only: the list alone.

        indices: how many of the last blocks, or the numbers of blocks; None: all. norm: the patches
        after the last norm, too. output_fmt: "NCHW", (B, D, h, w), or "NLC", (B, h·w, D).
        return_prefix_tokens: the list has pairs, the patches and the special tokens (B, T, D).
        Raises ValueError for another output_fmt.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt must be NCHW or NLC (got {output_fmt!r})")
        numbers = range(len(self.blocks))
        last = len(numbers) if indices is None else indices
        taken = numbers[-last:] if isinstance(last, int) else [numbers[place] for place in last]
        scales = self._branch_scales(None, images.shape[0])
        x = self.embed(images)
        y = _normalise(x, self._norm_before(0))
        found: list[Any] = []
        for number in numbers:
            x, y = self._run_block(number, x, y, scales, None)
            if number in taken:
                tokens = _normalise(x, self.norm) if norm else x
                special, patches = tokens.tensor_split([self.num_prefix_tokens], dim=1)
                if output_fmt == "NCHW":
                    patches = self._as_grid(patches, images)
                found.append((patches, special) if return_prefix_tokens else patches)
        return found if intermediates_only else (y, found)

    def _as_grid(self, patches: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        """Return tokens (B, h·w, D) of images as (B, D, h, w)."""
        width = images.shape[-1] // self.patch_size if images.ndim == 4 else self.grid_size
        return patches.mT.unflatten(2, (-1, width)).contiguous()

    def _run_blocks(
        self, images: torch.Tensor, keep: torch.Tensor | None, num_out: int | None
    ) -> torch.Tensor:
        """Return the first num_out tokens after the last norm, (B, num_out, D); None: all.

        The last block computes the other tokens no further than its attention.
        """
        scales = self._branch_scales(keep, images.shape[0])
        x = self.embed(images)
        y = _normalise(x, self._norm_before(0))
        for number in range(len(self.blocks)):
            is_last = number == len(self.blocks) - 1
            inputs = (number, x, y, scales, num_out if is_last else None)
            if self.grad_checkpointing and self.training:
                # nothing in a block is random: its DropPath mask is an input
                x, y = checkpoint(
                    self._run_block, *inputs, use_reentrant=False, preserve_rng_state=False
                )
            else:
                x, y = self._run_block(*inputs)
        return y

    def _run_block(
        self,
        number: int,
        x: torch.Tensor,
        y: torch.Tensor,
        scales: torch.Tensor | None,
        num_out: int | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the residual stream after a block, and its norm for the next; x, y: the same of
        the block before, (B, N, D)."""
        block = cast(Block, self.blocks[number])
        attention_scale, mlp_scale = (None, None) if scales is None else scales[number].unbind(0)
        x = x[:, :num_out].contiguous()
        branch = block.attn(y, num_out)
        x, y = add_branch(x, branch, block.attn.proj, attention_scale, block.ls1, block.norm2)
        following = self._norm_before(number + 1)
        return add_branch(x, block.mlp(y), block.mlp.fc2, mlp_scale, block.ls2, following)

    def _norm_before(self, number: int) -> nn.LayerNorm:
        """Return the norm of a block's input; after the last block the final one."""
        is_end = number == len(self.blocks)
        return self.norm if is_end else cast(Block, self.blocks[number]).norm1

    def _branch_scales(self, keep: torch.Tensor | None, batch: int) -> torch.Tensor | None:
        """Return each branch's factor per sample, (depth, 2, B) fp32; None: all are 1."""
        if keep is None and not (self.training and any(self.drop_path_rates)):
            return None
        return scale_branches(self.drop_path_rates, keep, batch, self.cls_token.device)


def _normalise(x: torch.Tensor, layer: nn.LayerNorm) -> torch.Tensor:
    return norm(x, layer.weight, layer.bias, NORM_EPS)


def build_student(name: str, *, num_classes: int, **overrides: object) -> Student:
    """Build a named student with the initial weights of a seed.

    overrides: keywords of `Student` (seed, drop_path, ...), which replace the sizes of the name.
    Raises ValueError, listing the names, for an unknown name.
    """
    if name not in SIZES:
        raise ValueError(f"the student must be one of {', '.join(SIZES)} (got {name!r})")
    settings: dict[str, Any] = {**SIZES[name]._asdict(), "num_classes": num_classes, **overrides}
    return Student(**settings)
