"""Sizes of students, by timm's names or from a state dict; names that are near to a given one."""

import difflib
import math
import re
from typing import NamedTuple

import timm
import torch

StateDict = dict[str, torch.Tensor]
"""Tensors by the name of a parameter or buffer."""

INIT_VALUES = 1e-4
"""The initial value of LayerScale in DeiT III (deit's models_v2.py; timm's 1e-6 is for models whose
weights are loaded)."""


class Size(NamedTuple):
    """Sizes and options of a named student, by the keywords of `Student`."""

    embed_dim: int
    depth: int
    num_heads: int
    image_size: int
    distilled: bool = False
    patch_size: int = 16
    qkv_bias: bool = False
    no_embed_class: bool = False
    init_values: float | None = None
    constant_drop_path: bool = False


WIDTHS = {"tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12)}
"""Width, depth and number of heads of DeiT's three sizes."""
_DEIT3 = {
    "small_patch16_224": (384, 12, 6, 224),
    "small_patch16_384": (384, 12, 6, 384),
    "medium_patch16_224": (512, 12, 8, 224),
    "base_patch16_224": (768, 12, 12, 224),
    "base_patch16_384": (768, 12, 12, 384),
    "large_patch16_224": (1024, 24, 16, 224),
    "large_patch16_384": (1024, 24, 16, 384),
    "huge_patch14_224": (1280, 32, 16, 224),
}
SIZES = {
    f"deit_{name}{'_distilled' if distilled else ''}_patch16_{image_size}": Size(
        *width, image_size, distilled
    )
    for name, width in WIDTHS.items()
    for distilled in (False, True)
    for image_size in (224, 384)
} | {
    f"deit3_{name}": Size(
        *sizes,
        patch_size=14 if "patch14" in name else 16,
        qkv_bias=True,
        no_embed_class=True,
        init_values=INIT_VALUES,
        constant_drop_path=True,
    )
    for name, sizes in _DEIT3.items()
}
"""The students by name."""


_PARTS = {"cls_token", "pos_embed", "patch_embed", "norm", "head"}
_BLOCK_PARTS = {"norm1", "attn", "norm2", "mlp"}
"""The names at the top, and in a block, of every student's state dict."""


def is_student(state: StateDict) -> bool:
    """Return True for the state dict of a DeiT, if `Student` has all of its tensors."""
    keys = [key.split(".") for key in state]
    of_block = {part for first, *rest in keys if first == "blocks" for part in rest[1:2]}
    at_top = {first for first, *_ in keys}
    extra = at_top - _PARTS - {"blocks", "dist_token", "reg_token", "head_dist"}
    extra |= of_block - _BLOCK_PARTS - {"ls1", "ls2"}
    return at_top >= _PARTS and of_block >= _BLOCK_PARTS and not extra


def has_qkv_bias(state: StateDict) -> bool:
    """Return True if a DeiT's qkv projections have biases, as all published ones do."""
    return "blocks.0.attn.qkv.bias" in state


def has_layer_scale(state: StateDict) -> bool:
    """Return True if a DeiT has LayerScale, as DeiT III has."""
    return "blocks.0.ls1.gamma" in state


def _count_registers(state: StateDict) -> int:
    registers = state.get("reg_token")
    return 0 if registers is None or registers.ndim != 3 else registers.shape[1]


def infer_student_sizes(state: StateDict, metadata: dict[str, str]) -> dict[str, object]:
    """Return the keywords of `Student` that follow from a DeiT state dict.

    The shapes of the tensors give everything but the number of heads: that is the metadata's
    num_heads, else that of the metadata's model, else it is absent. Raises ValueError if the state
    dict is not a DeiT's.
    """
    _check_axes(state)
    width = state["cls_token"].shape[-1]
    patch_size = state["patch_embed.proj.weight"].shape[-1]
    distilled = "dist_token" in state
    registers = _count_registers(state)
    num_positions = state["pos_embed"].shape[1]
    # the count of the patches is a square; with registers both may be squares on a small grid
    no_embed_class = math.isqrt(num_positions) ** 2 == num_positions
    if registers and "no_embed_class" in metadata:
        no_embed_class = metadata["no_embed_class"] == "true"
    num_prefix = 0 if no_embed_class else registers + (2 if distilled else 1)
    sizes: dict[str, object] = {
        "embed_dim": width,
        "depth": len({key.split(".")[1] for key in state if key.startswith("blocks.")}),
        "mlp_ratio": state["blocks.0.mlp.fc1.weight"].shape[0] / width,
        "image_size": math.isqrt(max(0, num_positions - num_prefix)) * patch_size,
        "patch_size": patch_size,
        "num_classes": state["head.weight"].shape[0],
        "distilled": distilled,
        "qkv_bias": has_qkv_bias(state),
        "no_embed_class": no_embed_class,
        "init_values": INIT_VALUES if has_layer_scale(state) else None,
        "reg_tokens": registers,
    }
    num_heads = _read_num_heads(metadata)
    return sizes if num_heads is None else sizes | {"num_heads": num_heads}


def _check_axes(state: StateDict) -> None:
    """Raise ValueError unless the tensors that give the sizes exist, with a DeiT's axes."""
    axes = {
        "cls_token": 3,
        "pos_embed": 3,
        "patch_embed.proj.weight": 4,
        "blocks.0.mlp.fc1.weight": 2,
        "head.weight": 2,
    }
    missing = [
        key
        for key, count in axes.items()
        if key not in state or state[key].ndim != count or not state[key].numel()
    ]
    if missing:
        raise ValueError(f"not a DeiT checkpoint: {', '.join(missing)} missing or of another shape")


def _read_num_heads(metadata: dict[str, str]) -> int | None:
    heads = metadata.get("num_heads")
    if heads is None:
        name = metadata.get("model")
        return SIZES[name].num_heads if name in SIZES else None
    if not re.fullmatch(r"[1-9]\d{0,3}", heads):
        rule = "the metadata's num_heads must be 1 to 9999"
        raise ValueError(f"not a DeiT checkpoint: {rule} (got {heads[:20]!r})")
    return int(heads)


def suggest_names(name: str) -> str:
    """Return "; near: ..." with the names nearest to this one, of ours and timm's models, or "" if
    none is near."""
    near = difflib.get_close_matches(name, {*SIZES, *timm.list_models()}, n=3)
    return f"; near: {', '.join(near)}" if near else ""


def check_sizes(
    image_size: int, patch_size: int, embed_dim: int, num_heads: int, drop_path: float
) -> None:
    """Raise ValueError for sizes of a student that do not divide, or a DropPath rate out of
    range."""
    check_patches(image_size, patch_size)
    if embed_dim % num_heads:
        raise ValueError(f"embed_dim must be a multiple of {num_heads} heads (got {embed_dim})")
    if not 0 <= drop_path < 1:
        raise ValueError(f"drop_path must be 0 or more, below 1 (got {drop_path})")


def check_patches(image_size: int, patch_size: int) -> None:
    """Raise ValueError unless patches fill an image; sides in pixels."""
    if image_size % patch_size:
        raise ValueError(f"image_size must be a multiple of {patch_size} (got {image_size})")
