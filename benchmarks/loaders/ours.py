"""fastdeit's training loader, planning and feeding included, and DALI's reading and decoding alone.

The loader is the trainer's: the plan with DropPath's bits and digests, the quarantine, labels.
"""

import functools
from collections.abc import Callable, Iterator

import numpy as np
import torch
from nvidia.dali import fn, pipeline_def, types

from benchmarks.loaders.case import BATCH, Case, Started
from benchmarks.loaders.images import MEAN, PATTERN, STD
from fastdeit.data.graphs.options import PipelineOptions
from fastdeit.data.index import Index, build_index
from fastdeit.data.loaders.train import TrainLoader
from fastdeit.plan.plan import Plan
from fastdeit.plan.spec import PlanSpec

_DROP_PATH = np.linspace(0, 0.1, 12).tolist()  # of DeiT-S


def start_exact(case: Case) -> Started:
    """Start the loader with the backend `exact`."""
    return _start(case, "exact")


def start_native(case: Case) -> Started:
    """Start the loader with the backend `native`."""
    return _start(case, "native")


def _start(case: Case, backend: str) -> Started:
    index = _index(case)
    options = PipelineOptions(MEAN, STD, num_threads=case.workers, backend=backend)
    loader = TrainLoader(
        index,
        Plan(_spec(case), index.sizes),
        options,
        batch_size=BATCH,
        micro_batch=BATCH,
        drop_path=_DROP_PATH,
    )
    return (batch.images for epoch in range(2**20) for batch in loader.epoch(epoch)), []


def _spec(case: Case) -> PlanSpec:
    layers = PlanSpec.ra_layers if case.augments else 0
    reprob = PlanSpec.reprob if case.erases else 0.0
    return PlanSpec(
        input_size=case.size, repeats=case.copies, ra_layers=layers, reprob=reprob
    )


@functools.cache
def _index(case: Case) -> Index:
    if case.data == "tars":
        return build_index(case.folder, PATTERN)
    return build_index(case.folder.parent, case.folder.name)  # its table lies beside the classes
