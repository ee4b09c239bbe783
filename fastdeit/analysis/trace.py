"""Tokens and attention in a forward pass, as far as a model has them."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from fastdeit.analysis.attention_maps import AttentionMaps, find_attention, record_attention
from fastdeit.analysis.distance import AttentionDistance, summarise_distance
from fastdeit.analysis.tokens import (
    TokenSimilarity,
    has_two_tokens,
    measure_tokens,
    summarise_tokens,
)


class Trace(NamedTuple):
    """Measurements of a batch of B images; L layers, H attention heads."""

    cosines: torch.Tensor | None
    """The cosines of the tokens, (B, L + 2), by `measure_tokens`; None: there is no distillation
    token."""
    distances: torch.Tensor | None
    """The mean attention distances in patches, (B, L, H); None: there is no plain
    self-attention."""
    maps: AttentionMaps | None
    """The attention maps; None: there is no plain self-attention."""


@dataclass(frozen=True)
class TokenAnalysis:
    """Tokens and attention of a model over some images."""

    tokens: TokenSimilarity | None
    distance: AttentionDistance | None
    notes: tuple[str, ...]
    """Lines on what the model lacks."""


@torch.no_grad()
def trace_images(model: nn.Module, images: torch.Tensor) -> Trace:
    """Run a model in evaluation mode once; return the measurements.

    images: (B, 3, S, S), normalised, on the model's device and in its dtype.
    """
    recording = nullcontext() if find_lack(model) else record_attention(model)
    with recording as record:
        cosines = measure_tokens(model, images) if has_two_tokens(model) else None
        if record is not None and cosines is None:
            model(images)
    if record is None:
        return Trace(cosines, None, None)
    return Trace(cosines, record.distances, record.maps())


def find_lack(model: nn.Module) -> str:
    """Return why a model has no attention to see, or ""."""
    try:
        find_attention(model)
    except ValueError as error:
        return str(error)
    return ""


def summarise_traces(model: nn.Module, traces: Sequence[Trace], image_size: int) -> TokenAnalysis:
    """Return the means over the images of all traces, 1 or more; image_size: their side in
    pixels."""
    cosines = [trace.cosines for trace in traces if trace.cosines is not None]
    distances = [trace.distances for trace in traces if trace.distances is not None]
    maps = traces[0].maps
    side = maps.rollout.shape[-1] if maps is not None else 1
    notes = [] if cosines else ["the model has no distillation token to compare"]
    if not distances:
        notes.append(f"the model has no attention to see: {find_lack(model)}")
    return TokenAnalysis(
        tokens=summarise_tokens(model, torch.cat(cosines)) if cosines else None,
        distance=(
            summarise_distance(torch.cat(distances), image_size / side, side**2)
            if distances
            else None
        ),
        notes=tuple(notes),
    )
