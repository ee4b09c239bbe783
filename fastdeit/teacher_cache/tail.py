"""Cost of recording only the k largest logits: what soft distillation loses without the others."""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from fastdeit.kernels.distill import soft_distillation
from fastdeit.teacher_cache.format import Manifest
from fastdeit.teacher_cache.reader import Cache

_MOST_CHUNKS = 8


class SoftCost(NamedTuple):
    """Soft distillation from the live teacher and from records, means over samples: both losses,
    and the cosine between their gradients."""

    live: float
    recorded: float
    cosine: float


def compare_soft(
    live: torch.Tensor, recorded: torch.Tensor, tau: float, student: torch.Tensor | None = None
) -> SoftCost:
    """Compare soft distillation to logits with that to what a cache has of them, both (B, K).

    student: its logits (B, K); without, equal ones, as before training.
    """
    student = torch.zeros_like(live) if student is None else student
    losses = []
    gradients = []
    for target in (live, recorded):
        logits = student.clone().requires_grad_()
        loss = soft_distillation(logits, target, tau, False)
        gradients.append(torch.autograd.grad(loss, logits)[0])
        losses.append(loss.item())
    cosine = F.cosine_similarity(gradients[0], gradients[1]).mean().item()
    return SoftCost(losses[0], losses[1], cosine)


def kept_share(records: np.ndarray, manifest: Manifest, tau: float) -> np.ndarray:
    """Return the total probability of the recorded classes at one of `Manifest.taus`, (B,)
    float64."""
    top = records["logits"].astype(np.float64) / tau
    total = records["logsumexp"][:, manifest.taus.index(tau)]
    return np.minimum(np.exp(top - total[:, None]).sum(1), 1.0)


def read_some_records(cache: Cache) -> np.ndarray:
    """Return the records of a few whole chunks from the first to the last, (B,) of
    `manifest.record`."""
    recorded = np.argwhere(cache.coverage()).tolist()
    places = np.linspace(0, len(recorded) - 1, min(len(recorded), _MOST_CHUNKS)).astype(int)
    chunks = [recorded[place] for place in places]
    found = [cache.read_chunk(*each) for each in chunks if cache.find_fault(*each) is None]
    whole = [chunk.view(cache.manifest.record) for chunk in found if chunk is not None]
    return np.concatenate([np.empty(0, cache.manifest.record), *whole])
