"""timm's loader, sample by sample and as its train.py runs it.

The arguments are those of deit's recipe. `PrefetchLoader` normalises and erases the uint8 batches
in the process that trains; with a GPU, on the GPU. Copies come from timm's RepeatAugSampler, deit's
RASampler, and each is decoded separately; timm's reader of shards has no copies.
"""

from typing import Any

import torch
import torch.distributed as dist
from timm.data import create_dataset, create_loader

from benchmarks.loaders.case import BATCH, Case, Started, start_torch
from benchmarks.loaders.images import MEAN, PATTERN, STD


def start_per_sample(case: Case) -> Started:
    """Start timm's loader whose workers normalise and erase each sample (use_prefetcher=False)."""
    return _start(case, use_prefetcher=False)


def start_prefetcher(case: Case) -> Started:
    """Start timm's loader in the form that its train.py uses by default (use_prefetcher=True)."""
    return _start(case, use_prefetcher=True, device=torch.device("cpu"))


def _start(case: Case, **form: Any) -> Started:
    recipe = {
        "auto_augment": "rand-m9-mstd0.5-inc1" if case.augments else None,
        "re_prob": 0.25 if case.erases else 0.0,
        "re_mode": "pixel",
        "color_jitter": None,
        "interpolation": "bicubic",
        "mean": MEAN,
        "std": STD,
    }
    made = create_dataset(**_source(case), is_training=True, batch_size=BATCH)
    loader = create_loader(
        made,
        (3, case.size, case.size),
        BATCH,
        is_training=True,
        num_workers=case.workers,
        **recipe,
        **_copies(case),
        **form,
    )
    return start_torch(loader)


def _source(case: Case) -> dict[str, str]:
    if case.data == "folder":
        return {"name": "", "root": str(case.folder)}
    return {"name": "wds/", "root": str(case.folder), "split": f"{PATTERN}|{case.samples}"}


def _copies(case: Case) -> dict[str, Any]:
    if case.copies == 1 or case.data == "tars":
        return {}
    if not dist.is_initialized():  # the sampler asks for the rank
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    return {"distributed": True, "num_aug_repeats": case.copies}
