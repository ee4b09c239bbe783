"""Attention maps of a Vision Transformer: how much its special tokens read each patch.

CLS is the class token, which the class head reads, DIST the distillation token of a DeiT. Two maps
of each: the attention weights of the last layer, by attention head; and attention rollout, which
follows the weights through all layers, with A_l the mean over the heads of layer l:

    R_0 = I,    R_l = (A_l + I) / 2 · R_(l-1)

Source: Abnar & Zuidema 2020 (2005.00928), section 3.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from math import isqrt
from typing import Any, NamedTuple

import torch
from timm.layers import Attention as TimmAttention
from torch import nn

from fastdeit.analysis.distance import measure_distance
from fastdeit.kernels.attention import attention_weights
from fastdeit.models.blocks import Attention


class AttentionMaps(NamedTuple):
    """Maps of a batch, fp32 on the CPU: T special tokens, H heads, patches in rows (h, w).

    What a map lacks to a sum of 1 is what the token reads of special tokens.
    """

    tokens: tuple[str, ...]
    """The names of the special tokens: CLS, and DIST if the model has it."""
    heads: torch.Tensor
    """The attention weights of the last layer, (B, T, H, h, w)."""
    rollout: torch.Tensor
    """The attention rollout, (B, T, h, w)."""

    def of_image(self, row: int) -> "AttentionMaps":
        """Return the maps of one image, with B = 1."""
        part = slice(row, row + 1)
        return AttentionMaps(self.tokens, self.heads[part], self.rollout[part])


class AttentionRecord:
    """The attention of a model's newest forward pass.

    weights: fp32 (B, H, N, N), of the last layer; rollout: fp32 (B, N, N), over all layers. Each
    row is a query and sums to 1.
    """

    weights: torch.Tensor
    rollout: torch.Tensor

    def __init__(self, tokens: tuple[str, ...], num_prefix_tokens: int) -> None:
        self._tokens = tokens
        self._num_prefix_tokens = num_prefix_tokens
        self._distances: list[torch.Tensor] = []

    def add(self, layer: int, num_heads: int, _: nn.Module, __: object, qkv: torch.Tensor) -> None:
        """Add a layer, as a forward hook of its qkv projection; layer 0 begins a forward pass.

        qkv: (B, N, 3·H·D), of which the kernel of attention returns the weights.
        """
        packed = qkv.unflatten(-1, (3, num_heads, -1))
        self.weights = attention_weights(packed, range(num_heads))[1]
        identity = torch.eye(qkv.shape[1], device=qkv.device)
        mixed = (self.weights.mean(1) + identity) / 2
        self.rollout = mixed @ self.rollout if layer else mixed
        earlier = self._distances if layer else []
        self._distances = [*earlier, measure_distance(self.weights, self._num_prefix_tokens)]

    @property
    def distances(self) -> torch.Tensor:
        """Return the mean attention distances in patches: fp32 (B, L, H) on the CPU."""
        return torch.stack(self._distances, 1).cpu()

    def maps(self) -> AttentionMaps:
        """Return what the special tokens read of the patches."""
        last = self._over_patches(self.weights).transpose(1, 2)
        return AttentionMaps(self._tokens, last, self._over_patches(self.rollout))

    def _over_patches(self, weights: torch.Tensor) -> torch.Tensor:
        """Return rows of the special tokens over the grid of patches: (..., N, N) → (..., T, h,
        w)."""
        patches = weights[..., : len(self._tokens), self._num_prefix_tokens :].cpu()
        side = isqrt(patches.shape[-1])
        return patches.unflatten(-1, (side, side))


@contextmanager
def record_attention(model: nn.Module) -> Iterator[AttentionRecord]:
    """Record the attention of the forward passes in the block, of square images, without gradient.

    A model without a class token has weights, and no maps. Raises ValueError as `find_attention`.
    """
    layers = find_attention(model)
    num_prefix_tokens: Any = model.num_prefix_tokens
    record = AttentionRecord(_name_tokens(model), num_prefix_tokens)
    handles = [
        layer.qkv.register_forward_hook(partial(record.add, number, layer.num_heads))
        for number, layer in enumerate(layers)
    ]
    try:
        yield record
    finally:
        for handle in handles:
            handle.remove()


def check_attention(model: nn.Module) -> None:
    """Raise ValueError unless the model has plain attention (`find_attention`), and its head reads
    a class token."""
    find_attention(model)
    has_token = getattr(model, "cls_token", None) is not None
    if not has_token or getattr(model, "global_pool", "token") != "token":
        raise ValueError("its head does not read a class token")


def has_maps(model: nn.Module) -> bool:
    """Return True for a model that `check_attention` accepts."""
    try:
        check_attention(model)
    except ValueError:
        return False
    return True


def find_attention(model: nn.Module) -> list[Attention | TimmAttention]:
    """Return the attention of each layer.

    Raises ValueError unless the model is a Vision Transformer with plain attention: softmax of the
    products of queries and keys, without norms, gates or positions.
    """
    blocks = getattr(model, "blocks", ())
    layers = [getattr(block, "attn", None) for block in blocks]
    if not layers or not all(map(_is_plain, layers)):
        raise ValueError("its layers have no plain self-attention")
    return layers


def _is_plain(layer: nn.Module | None) -> bool:
    if isinstance(layer, TimmAttention) and type(layer) is TimmAttention:
        norms = (layer.q_norm, layer.k_norm)
        return layer.gate is None and all(isinstance(norm, nn.Identity) for norm in norms)
    return type(layer) is Attention


def _name_tokens(model: nn.Module) -> tuple[str, ...]:
    fields = {"cls_token": "CLS", "dist_token": "DIST"}
    return tuple(name for field, name in fields.items() if getattr(model, field, None) is not None)
