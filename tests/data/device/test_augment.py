"""The exact backend as kernels, from the files on: not one value differs from the compiled operator
of the CPU, which equals PIL's."""

import dataclasses
import itertools
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fastdeit.data.graphs.options import PipelineOptions
from fastdeit.data.index import Index
from fastdeit.data.indexing import build_index
from fastdeit.data.loaders.batch import Batch
from fastdeit.data.loaders.evaluation import EvalLoader
from fastdeit.data.loaders.train import OrdinalLoader, TrainLoader
from fastdeit.data.quarantine import Quarantine
from fastdeit.kernels.mix import mix
from fastdeit.kernels.normalise import Pixels
from fastdeit.plan.plan import Plan
from fastdeit.plan.spec import PlanSpec
from tests.support.odd_images import write_odd_images
from tests.support.quick_kernels import quick_kernels

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGES, SIDE = 260, 24
DAMAGED = 17
"""Row of an image that is damaged."""
SPECS = {
    "deit": PlanSpec(seed=3, repeats=1, ra_prob=0.8, reprob=0.5),
    "deit3": PlanSpec(
        repeats=1,
        ra_layers=0,
        three_augment=True,
        simple_crop=True,
        color_jitter=0.3,
        reprob=0.4,
        remode="rand",
    ),
    "copies": PlanSpec(repeats=3, ra_layers=0, reprob=0.4, remode="const"),
}


NAMES = ["images", *(field.name for field in dataclasses.fields(Batch) if field.name != "unmixed")]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    return write_odd_images(tmp_path_factory.mktemp("odd"), IMAGES)


def load(
    index: Index, spec: PlanSpec, micro_batch: int = 52, batches: int = 5, **changes: Any
) -> list[Batch]:
    """Return the first batches of an epoch."""
    loader = TrainLoader(
        index,
        Plan(spec, index.sizes),
        PipelineOptions(MEAN, STD, num_threads=2, **changes),
        batch_size=micro_batch,
        micro_batch=micro_batch,
        drop_path=(0.1, 0.2),
    )
    try:
        return list(itertools.islice(loader.epoch(0), batches))
    finally:
        loader.close()


def assert_same(ours: list[Batch], expected: list[Batch]) -> None:
    """Compare every field of all batches, bit for bit."""
    assert len(ours) == len(expected) > 0
    for batch, other in zip(ours, expected, strict=True):
        for name in NAMES:
            one, two = getattr(batch, name), getattr(other, name)
            same = torch.equal(one.cpu(), two) if isinstance(one, torch.Tensor) else one == two
            assert same, name
        assert torch.equal(mixed(batch), mixed(other))


def mixed(batch: Batch) -> torch.Tensor:
    """Return the mixed images, out of pixels or of images that are normalised already."""
    return mix(batch.unmixed, batch.lam, batch.box, torch.float32).cpu()


@pytest.fixture(params=SPECS)
def spec(request: pytest.FixtureRequest) -> PlanSpec:
    return dataclasses.replace(SPECS[request.param], input_size=SIDE)


def test_references_equal_the_compiled_operator(index: Index, spec: PlanSpec) -> None:
    expected = load(index, spec)
    seen = np.unique(np.concatenate([batch.image_index.numpy() for batch in expected]))
    assert len(seen) == IMAGES or spec.repeats > 1
    assert_same(load(index, spec, uses_kernels=True), expected)


def equal_by_kernels(index: Index, spec: PlanSpec, micro_batch: int, batches: int) -> None:
    """Compare the kernels with the compiled operator on the first batches of an epoch."""
    expected = load(index, spec, micro_batch, batches)
    with quick_kernels():
        assert_same(load(index, spec, micro_batch, batches, uses_kernels=True), expected)


def test_kernels_equal_the_compiled_operator(index: Index, spec: PlanSpec) -> None:
    equal_by_kernels(index, spec, 12, 1)


@pytest.mark.slow
def test_kernels_equal_the_compiled_operator_for_every_image(index: Index, spec: PlanSpec) -> None:
    """Five minutes."""
    equal_by_kernels(index, spec, 52, 5)


@pytest.mark.slow
@pytest.mark.parametrize("name", SPECS)
def test_kernels_equal_the_compiled_operator_at_224(index: Index, name: str) -> None:
    equal_by_kernels(index, dataclasses.replace(SPECS[name], input_size=224), 12, 2)


@pytest.mark.parametrize("name", SPECS)
def test_references_equal_the_compiled_operator_at_224(index: Index, name: str) -> None:
    spec = dataclasses.replace(SPECS[name], input_size=224)
    expected = load(index, spec, 10, 2)
    assert_same(load(index, spec, 10, 2, uses_kernels=True), expected)


def test_micro_batches_change_no_value(index: Index) -> None:
    spec = dataclasses.replace(SPECS["copies"], input_size=SIDE)
    whole, parts = (
        load(index, spec, size, count, uses_kernels=True) for size, count in ((52, 2), (26, 4))
    )
    joined = [torch.cat([batch.images for batch in batches]) for batches in (whole, parts)]
    assert torch.equal(*joined)


def test_an_image_is_decoded_once_for_its_copies(index: Index) -> None:
    spec = dataclasses.replace(SPECS["copies"], input_size=SIDE)
    options = PipelineOptions(MEAN, STD, num_threads=2, uses_kernels=True)
    plan = Plan(spec, index.sizes)
    loader = TrainLoader(index, plan, options, batch_size=52, micro_batch=52)
    planned, rows, (windows,) = loader.plan_batch(0)
    assert len(rows) == len(windows) == len(np.unique(planned.draws.image_index)) < 30
    loader.close()


def test_chosen_samples_are_those_of_the_epoch(index: Index, spec: PlanSpec) -> None:
    """What `fastdeit cache record` loads."""
    options = PipelineOptions(MEAN, STD, num_threads=2, uses_kernels=True)
    chosen = np.array([8, 9, 30, 31, 2, 3])
    plan = Plan(spec, index.sizes)
    (batch,) = OrdinalLoader(index, plan, options, [(0, chosen)], micro_batch=6)
    first = load(index, spec)[0]
    assert torch.equal(batch.images, first.images[chosen])


@pytest.mark.parametrize("fault", ["cut", "smaller"])
def test_a_damaged_image_is_excluded_and_its_batch_made_again(
    index: Index, tmp_path: Path, fault: str
) -> None:
    copy = damaged(index, tmp_path, fault)
    spec = dataclasses.replace(SPECS["deit"], input_size=SIDE)
    loaded = []
    for uses_kernels in (False, True):
        options = PipelineOptions(MEAN, STD, num_threads=2, uses_kernels=uses_kernels)
        quarantine = Quarantine(copy, "skip")
        loader = TrainLoader(
            copy,
            Plan(spec, copy.sizes),
            options,
            batch_size=52,
            micro_batch=52,
            quarantine=quarantine,
        )
        loaded.append(list(loader.epoch(0)))
        assert quarantine.rows.tolist() == [DAMAGED]
    assert_same(loaded[1], loaded[0])
    assert all((batch.image_index != DAMAGED).all() for batch in loaded[1])


def damaged(index: Index, folder: Path, fault: str) -> Index:
    """Return a copy of the data set, in which a file has been damaged since it was indexed."""
    shutil.copytree(index.root, folder / "copy")
    copy = build_index(folder / "copy", "train")
    path = copy.root / copy.name(DAMAGED)
    if fault == "cut":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    else:
        Image.new("RGB", (1, 1)).save(path)
    return copy


def test_evaluation_reads_as_without_kernels(index: Index) -> None:
    """It has the CPU's operator, whose crops are more than the kernels have."""
    passes = []
    for uses_kernels in (False, True):
        options = PipelineOptions(MEAN, STD, num_threads=2, uses_kernels=uses_kernels)
        loader = EvalLoader(index, options, batch_size=65, input_size=SIDE, crop_pct=0.9)
        passes.append(torch.cat([batch.images for batch in loader]))
        loader.close()
    assert torch.equal(*passes)


@pytest.mark.gpu
@pytest.mark.parametrize("size", [SIDE, 224])
@pytest.mark.parametrize("name", SPECS)
def test_gpu_equals_the_compiled_operator_of_the_cpu(index: Index, name: str, size: int) -> None:
    spec = dataclasses.replace(SPECS[name], input_size=size)
    ours = load(index, spec, uses_kernels=True, device="gpu")
    assert all(isinstance(batch.unmixed, Pixels) and batch.labels.is_cuda for batch in ours)
    assert_same(ours, load(index, spec))


@pytest.mark.gpu
@pytest.mark.parametrize("decoder", ["mixed", "hardware"])
def test_micro_batches_change_no_value_of_a_gpus_decoder(index: Index, decoder: str) -> None:
    spec = dataclasses.replace(SPECS["copies"], input_size=SIDE)
    chosen = {"uses_kernels": True, "device": "gpu", "decoder": decoder}
    whole, parts = (load(index, spec, size, count, **chosen) for size, count in ((52, 2), (26, 4)))
    joined = [torch.cat([batch.images for batch in batches]) for batches in (whole, parts)]
    assert torch.equal(*joined)


@pytest.mark.gpu
def test_batches_stay_whole_while_they_are_held(index: Index) -> None:
    """DALI uses its memory again, torch that of buffers whose kernels have been launched."""
    spec = dataclasses.replace(SPECS["deit"], input_size=SIDE)
    torch.cuda._sleep(500_000_000)  # about 0.25 s: all batches are taken before a kernel runs
    held = load(index, spec, 26, 10, uses_kernels=True, device="gpu")
    assert_same(held, load(index, spec, 26, 10))
