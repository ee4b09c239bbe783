"""fastdeit's training loader, with planning and feeding, and DALI's reading and decoding alone.

The loader is that of the trainer: the plan with DropPath's bits and digests, the quarantine,
labels.
"""

import functools
import itertools

import numpy as np
import torch
from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.data_node import DataNode

from benchmarks.loaders.case import BATCH, Case, Started
from benchmarks.loaders.images import MEAN, PATTERN, STD
from fastdeit.data.graphs.options import PipelineOptions
from fastdeit.data.index import Index
from fastdeit.data.indexing import build_index
from fastdeit.data.loaders import train
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
    # by default 4096 samples are planned at once, so most measurements would include no planning
    train._PLANNED_AT_ONCE = 4 * BATCH
    loader = train.TrainLoader(
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
    return PlanSpec(input_size=case.size, repeats=case.copies, ra_layers=layers, reprob=reprob)


@functools.cache
def _index(case: Case) -> Index:
    if case.data == "tars":
        return build_index(case.folder, PATTERN)
    return build_index(case.folder.parent, case.folder.name)  # it is stored beside the classes


def start_reading(case: Case) -> Started:
    """Start DALI reading whole files, in the plan's order."""
    return _start_dali(case, decodes=False)


def start_decoding(case: Case) -> Started:
    """Start DALI reading files and decoding the planned crop of each sample."""
    return _start_dali(case, decodes=True)


def _start_dali(case: Case, decodes: bool) -> Started:
    index = _index(case)
    plan = Plan(_spec(case), index.sizes)
    threads = {"num_threads": case.workers, "device_id": None}
    graph = _graph(index, plan, decodes, batch_size=BATCH, **threads)
    graph.build()
    images = torch.empty(BATCH, 0)
    return ((graph.run(), images)[1] for _ in itertools.repeat(None)), []


@pipeline_def
def _graph(index: Index, plan: Plan, decodes: bool) -> DataNode:
    def source(number: int) -> tuple[object, np.ndarray]:
        draws = plan.draw(number, np.arange(BATCH))
        return index.encoded(draws.image_index), draws.crop

    first, crop = fn.external_source(
        source, num_outputs=2, dtype=[types.UINT8, types.INT32], ndim=1
    )
    encoded = fn.io.file.read(first, dont_use_mmap=True) if index.feeds_paths else first
    if not decodes:
        return encoded
    return fn.decoders.image_slice(encoded, start=crop[0:2], shape=crop[2:4], axis_names="HW")
