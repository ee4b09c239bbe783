"""Weights of one student made to fit another: other tokens, patches or biases.

`own` and `state`: the weights of the student that is built, and those of the file, which are
changed in place; a note is returned for everything that was changed. What still differs, the width
or the number of blocks, is refused when the weights are loaded.
"""

import math
from collections.abc import Mapping

import torch
from timm.layers import resample_patch_embed

from fastdeit.models.sizes import StateDict, has_qkv_bias, infer_student_sizes
from fastdeit.models.weights import HEADS

TOKENS = {"cls_token": "class token", "dist_token": "distillation token", "reg_token": "registers"}
"""The tokens of a student, in the order of their positions, which come before those of the
patches."""
_PATCHES = "patch_embed.proj.weight"


def fit_other_student(own: StateDict, state: StateDict) -> list[str]:
    """Make the weights of another student fit the student with the weights `own`, except for the
    resolution. Raises ValueError if they are not a DeiT's."""
    notes = _fit_heads(own, state)
    infer_student_sizes(state, {})  # checks the axes that are used here
    return notes + _fit_tokens(own, state) + _fit_patches(own, state) + _fit_qkv_bias(own, state)


def _fit_heads(own: StateDict, state: StateDict) -> list[str]:
    """Give heads that the file lacks their initial values; drop a head that the student lacks."""
    notes = []
    for head in HEADS:
        keys = [f"{head}.weight", f"{head}.bias"]
        if keys[0] in own and keys[0] not in state:
            notes.append(f"{head} left as initialised: the file has none")
            state |= {key: own[key] for key in keys}
        elif keys[0] not in own and keys[0] in state:
            notes.append(f"{head} of the file dropped: the model has none")
            for key in keys:
                state.pop(key, None)
    return notes


def _fit_tokens(own: StateDict, state: StateDict) -> list[str]:
    """Drop the tokens that the student with the weights `own` lacks, with their positions; give a
    token its initial values if the file has another number of it."""
    before, after = (_count_tokens(weights) for weights in (state, own))
    if before != after:
        _fit_positions(own, state, before, after)
    notes = []
    for token, name in TOKENS.items():
        count = before.get(token)
        if token not in after and count:
            notes.append(f"{name} of the file dropped: the model has none")
            del state[token]
        elif token in after and count != after[token]:
            notes.append(f"{name} left as initialised: the file has {count or 'none'}")
            state[token] = own[token]
    return notes


def _fit_positions(
    own: StateDict, state: StateDict, before: Mapping[str, int], after: Mapping[str, int]
) -> None:
    """Give each token its position in the file, or the initial one; before, after: how many of each
    token the file and the student have."""
    widths = {state[key].shape[-1] for key in [*before, "pos_embed"]}
    if widths != {own["pos_embed"].shape[-1]}:
        return
    patches = state["pos_embed"].shape[1] - sum(before.values())
    if patches < 1 or math.isqrt(patches) ** 2 != patches:
        return  # only the patches have positions, or the number is none of a DeiT
    theirs = _split_positions(state["pos_embed"], before)
    ours = _split_positions(own["pos_embed"], after)
    rows = [theirs[token] if before.get(token) == after[token] else ours[token] for token in after]
    state["pos_embed"] = torch.cat([*rows, theirs["patches"]], dim=1)


def _count_tokens(weights: StateDict) -> dict[str, int]:
    found = [token for token in TOKENS if token in weights and weights[token].ndim == 3]
    return {token: weights[token].shape[1] for token in found}


def _split_positions(positions: torch.Tensor, counts: Mapping[str, int]) -> dict[str, torch.Tensor]:
    """Split a position embedding (1, tokens + patches, D) into the rows of each token."""
    patches = positions.shape[1] - sum(counts.values())
    rows = positions.split([*counts.values(), patches], dim=1)
    return dict(zip([*counts, "patches"], rows, strict=True))


def _fit_patches(own: StateDict, state: StateDict) -> list[str]:
    """Resize the patch projection to the student's patch size, as timm does: so that it gives for a
    resized patch what it gave before (FlexiViT, arXiv 2212.08013, equation 4)."""
    side, wanted = state[_PATCHES].shape[-1], own[_PATCHES].shape[-1]
    if side == wanted:
        return []
    state[_PATCHES] = resample_patch_embed(state[_PATCHES], [wanted, wanted])
    return [f"patch projection resized from {side} x {side} to {wanted} x {wanted} pixels"]


def _fit_qkv_bias(own: StateDict, state: StateDict) -> list[str]:
    """Add biases of zero, which change no output, if the student has them and the file lacks
    them."""
    if not has_qkv_bias(own) or has_qkv_bias(state):
        return []
    biases = {key: value for key, value in own.items() if key.endswith("attn.qkv.bias")}
    state |= {key: torch.zeros_like(value) for key, value in biases.items()}
    return ["the biases of query, key and value start at 0: the file has none"]
