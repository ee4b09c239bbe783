"""The similarity of class and distillation token: their cosine at the input and after each layer.

Source: Touvron et al. 2021 (2012.12877), section 4: the learned tokens of a DeiT have a cosine of
0.06; in the layers they become more alike, up to 0.93 after the last, but not equal, as they aim at
targets that are similar but not the same.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True)
class Cosine:
    """A cosine over images, or over classes: mean and standard deviation."""

    name: str
    """The two vectors that are compared."""
    mean: float
    std: float


@dataclass(frozen=True)
class TokenSimilarity:
    """The cosines between the class token and the distillation token, and between their heads."""

    learned: float
    """The cosine of the two learned vectors."""
    layers: tuple[Cosine, ...]
    """The cosines over images: of the `input` of the first layer, with positions; after `layer 1`,
    `layer 2`, ..., without a norm; after the `final norm`, what the heads read."""
    heads: Cosine | None
    """The cosine over classes of the weights of both heads; None: the model has no heads."""


def has_two_tokens(model: nn.Module) -> bool:
    """Return True for a Vision Transformer with a class and a distillation token."""
    tokens = (getattr(model, name, None) for name in ("cls_token", "dist_token"))
    return all(token is not None for token in tokens) and hasattr(model, "forward_intermediates")


@torch.no_grad()
def measure_tokens(model: Any, images: torch.Tensor) -> torch.Tensor:
    """Return the cosine of both tokens of each image: fp32 (B, depth + 2), in the order of
    `TokenSimilarity.layers`, of a model that `has_two_tokens`, in evaluation mode."""
    final, layers = model.forward_intermediates(images, return_prefix_tokens=True, output_fmt="NLC")
    first = _read_inputs(model).expand(len(images), -1, -1)
    pairs = [first, *(special for _, special in layers), final]
    return torch.stack([_compare(pair[:, 0], pair[:, 1]) for pair in pairs], 1).cpu()


def _read_inputs(model: Any) -> torch.Tensor:
    """Return both tokens as the first layer reads them, with their positions: (1, 2, D)."""
    tokens = torch.cat([model.cls_token, model.dist_token], 1)
    return tokens if model.no_embed_class else tokens + model.pos_embed[:, :2]


def _compare(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return F.cosine_similarity(one.float(), other.float(), dim=-1)


@torch.no_grad()
def summarise_tokens(model: Any, cosines: torch.Tensor) -> TokenSimilarity:
    """Return mean and standard deviation over images, and what needs no image.

    cosines: (B, depth + 2), by `measure_tokens`.
    """
    depth = cosines.shape[1] - 2
    names = ["input", *(f"layer {number + 1}" for number in range(depth)), "final norm"]
    layers = [_summarise(name, values) for name, values in zip(names, cosines.T, strict=True)]
    learned = _compare(model.cls_token, model.dist_token)
    has_heads = all(isinstance(head, nn.Linear) for head in (model.head, model.head_dist))
    heads = _compare(model.head.weight, model.head_dist.weight) if has_heads else None
    return TokenSimilarity(
        learned=float(learned),
        layers=tuple(layers),
        heads=None if heads is None else _summarise("heads", heads),
    )


def _summarise(name: str, values: torch.Tensor) -> Cosine:
    values = values.double()
    return Cosine(name, float(values.mean()), float(values.std(correction=0)))
