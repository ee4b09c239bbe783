"""The settings of the model that is trained."""

from dataclasses import dataclass
from typing import Literal

from fastdeit.config.parse import Section, refuse_secret

MAX_REGISTERS = 256


@dataclass(frozen=True)
class ModelConfig(Section):
    model: str = "deit_small_distilled_patch16_224"
    """deit_{tiny,small,base}[_distilled]_patch16_{224,384}, deit3_{small,...,huge}_patch{16,14}_*
    (docs/deit3.md), or any timm model. Empty: that of --finetune, with its sizes."""
    patch_size: int | None = None
    """Patch side in pixels, in place of the model's own."""
    embed_dim: int | None = None
    """Width, in place of the model's own."""
    depth: int | None = None
    """Number of blocks, in place of the model's own."""
    num_heads: int | None = None
    """Attention heads, in place of the model's own."""
    qkv_bias: bool = False
    """Bias in the query, key and value projection (as in deit, timm and published weights);
    deit3_* always have it."""
    init_values: float | None = None
    """LayerScale with this initial value, in place of the model's own (deit3_*: 1e-4, deit_*: no
    LayerScale)."""
    registers: int = 0
    """Number of learned tokens that no head reads (timm: reg_tokens)."""
    drop_path: float = 0.1
    """Stochastic depth: drop rate of the last block, rising linearly from 0 in the first; deit3_*:
    of every block."""
    finetune: str = ""
    """Start from these weights (.safetensors, .pth, a run folder, hf-hub:OWNER/NAME,
    local-dir:FOLDER, https://..., a timm model): the position embedding is resized, heads of other
    classes stay as initialised."""
    trainable: Literal["all", "attention", "heads"] = "all"
    """The weights that are trained; the others are frozen. all; attention: attention layers, heads
    and position embedding (deit's --attn-only); heads: the heads alone, without DropPath."""
    pos_embed_antialias: bool = True
    """Resize the position embedding of --finetune with timm's antialiased filter;
    --no-pos-embed-antialias: with torch's plain bicubic one, as in deit's code."""

    def check(self) -> None:
        self._require("drop_path", 0 <= self.drop_path < 1, "at least 0 and below 1")
        for name in ("patch_size", "embed_dim", "depth", "num_heads"):
            value = getattr(self, name)
            self._require(name, value is None or value > 0, "1 or more")
        self._require("init_values", self.init_values is None or self.init_values > 0, "above 0")
        self._require("registers", 0 <= self.registers <= MAX_REGISTERS, f"0 to {MAX_REGISTERS}")
        refuse_secret("finetune", self.finetune)
