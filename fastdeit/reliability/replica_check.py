"""The check that all ranks hold the same weights, bit for bit: a faulty device or network changes
one rank's copy.

At ZeRO 1 and 2 every rank has the whole model in the training precision. At ZeRO 3 only small
("persistent") parameters are whole, before the first step of a new run none, and nothing else has a
second copy to be compared with. DeepSpeed writes these copies anew from the fp32 masters after each
step, so a difference comes from the last step.
"""

from collections import Counter
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import nn


def compare_weights(module: nn.Module) -> str | None:
    """Return which ranks differ and in which parameter; None if all weights are equal.

    A collective; waits for the device. module: of a DeepSpeed engine, between two steps.
    """
    whole = {
        name: weight
        for name, weight in module.named_parameters()
        if getattr(weight, "ds_persist", True) and weight.numel()
    }
    if not whole:
        return None
    mine = hash_weights(list(whole.values()))
    hashes = torch.empty(dist.get_world_size(), len(whole), dtype=mine.dtype, device=mine.device)
    dist.all_gather_into_tensor(hashes.view(-1), mine)
    return describe_difference(list(whole), hashes.cpu())


def hash_weights(weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return a hash of each tensor: int64 (weights,).

    It is the exclusive or of the elements' bits as float64, exact in any order, and changed by any
    single bit of a finite fp32, bf16 or fp16 weight. Two elements cancel if the same bits change in
    the float64 form of both.
    """
    hashes = torch.stack([torch.hash_tensor(weight.detach()) for weight in weights])
    return hashes.view(torch.int64)  # collectives have no uint64


def describe_difference(names: Sequence[str], hashes: torch.Tensor) -> str | None:
    """Return what differs, in words; None if nothing does.

    hashes: int64 (ranks, names). Without a majority, all ranks are named with their hashes.
    """
    different = (hashes != hashes[0]).any(0).nonzero().flatten().tolist()
    if not different:
        return None
    where = names[different[0]]
    if len(different) > 1:
        where += f", the first of {len(different)} parameters"
    rows = [tuple(row) for row in hashes[:, different].tolist()]
    usual, count = Counter(rows).most_common(1)[0]
    if 2 * count > len(rows):
        odd = [str(rank) for rank, row in enumerate(rows) if row != usual]
        has = "ranks {} of {} have" if len(odd) > 1 else "rank {} of {} has"
        return f"{has.format(', '.join(odd), len(rows))} another {where}"
    values = ", ".join(f"rank {rank}: {row[0] % 2**64:016x}" for rank, row in enumerate(rows))
    return f"the ranks have different {where} (hashes {values})"
