"""Whether all ranks hold the same weights, bit for bit: what a faulty device or network does to one
rank's copy shows here.

At ZeRO 1 and 2 every rank keeps the whole model in the training precision; at ZeRO 3 only small
("persistent") parameters are whole, and nothing else has a second copy to be compared with.
DeepSpeed writes these copies anew from the fp32 masters after each step, so a difference is of the
last step's.
"""

from collections import Counter
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import nn

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def compare_weights(module: nn.Module) -> str | None:
    """None if all ranks' weights are equal; else which ranks differ, and in what. A collective;
    waits for the device.

    module: of a DeepSpeed engine, between two steps.
    """
    whole = {
        name: weight
        for name, weight in module.named_parameters()
        if getattr(weight, "ds_persist", True)
    }
    if not whole:
        return None
    mine = torch.stack([checksum(weight) for weight in whole.values()])
    sums = torch.empty(dist.get_world_size(), len(whole), dtype=mine.dtype, device=mine.device)
    dist.all_gather_into_tensor(sums.view(-1), mine)
    return describe_difference(list(whole), sums.cpu())


def checksum(weight: torch.Tensor) -> torch.Tensor:
    """int64 (): the sum of the elements' bits read as integers: exact in any order, and changed by
    any single bit."""
    return weight.detach().view(_INTEGERS[weight.element_size()]).sum(dtype=torch.int64)


def describe_difference(names: Sequence[str], sums: torch.Tensor) -> str | None:
    """What differs, in words; None if nothing does.

    sums: int64 (ranks, names). Ranks without a majority against them are all named with their sums.
    """
    different = (sums != sums[0]).any(0).nonzero().flatten().tolist()
    if not different:
        return None
    where = (
        f"{names[different[0]]}, the first of {len(different)} parameters"
        if len(different) > 1
        else names[different[0]]
    )
    rows = [tuple(row) for row in sums[:, different].tolist()]
    usual, times = Counter(rows).most_common(1)[0]
    if 2 * times > len(rows):
        odd = [str(rank) for rank, row in enumerate(rows) if row != usual]
        return f"rank{'s' * (len(odd) > 1)} {', '.join(odd)} of {len(rows)} {'have' if len(odd) > 1 else 'has'} another {where}"
    values = ", ".join(f"rank {rank}: {row[0] % 2**64:016x}" for rank, row in enumerate(rows))
    return f"the ranks have different {where} (checksums {values})"
