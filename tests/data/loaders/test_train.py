"""The training loader: the same samples on any number of ranks and micro-batches, after any jump,
in memory that stays valid."""

import dataclasses
import gc
import itertools
import shutil
import weakref
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fastdeit.data import quarantine
from fastdeit.data.device.transfer import send_together, to_device_of
from fastdeit.data.index import DataError, Index
from fastdeit.data.indexing import build_index
from fastdeit.data.loaders import planned
from fastdeit.data.loaders.batch import Batch
from fastdeit.data.loaders.train import TrainLoader
from fastdeit.data.quarantine import Quarantine
from fastdeit.plan.plan import Plan, SampleParams
from fastdeit.plan.spec import PlanSpec
from tests.support.copies import Copies
from tests.support.noise_images import SIDE, split_options, write_noise

BATCH = 64
DROP_PATH = (0.0, 0.1, 0.2)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    return write_noise(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def plan(index: Index) -> Plan:
    return Plan(PlanSpec(seed=1, input_size=SIDE, repeats=2, reprob=0.5), index.sizes)


def train_loader(index: Index, plan: Plan, micro_batch: int = BATCH, **changes: Any) -> TrainLoader:
    options, ours = split_options({"num_threads": 1, **changes})
    return TrainLoader(
        index,
        plan,
        options,
        micro_batch=micro_batch,
        **{"batch_size": BATCH, "drop_path": DROP_PATH, **ours},
    )


# no run here has a recorded teacher; tests/plan/test_digest.py has the digest
FIELDS = [
    "images",
    *(
        field.name
        for field in dataclasses.fields(Batch)
        if field.name not in ("unmixed", "teacher_record", "digest")
    ),
]


def joined(batches: Iterable[Batch]) -> dict[str, torch.Tensor]:
    """Return every field of all batches, by rising ordinal."""
    held = list(batches)
    whole = {name: torch.cat([getattr(batch, name) for batch in held]) for name in FIELDS}
    order = torch.argsort(whole["ordinals"])
    return {name: tensor[order] for name, tensor in whole.items()}


def assert_same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    for name, tensor in left.items():
        assert torch.equal(tensor, right[name]), name


@pytest.fixture(scope="module")
def expected(index: Index, plan: Plan) -> dict[str, torch.Tensor]:
    return joined(train_loader(index, plan).epoch(2))


def test_a_batch_holds_the_planned_samples(
    index: Index, plan: Plan, expected: dict[str, torch.Tensor]
) -> None:
    ordinals = np.arange(2 * BATCH)
    draws = plan.draw(2, ordinals)
    assert expected["ordinals"].tolist() == ordinals.tolist()
    assert expected["labels"].tolist() == index.labels[draws.image_index].tolist()
    assert expected["image_index"].tolist() == draws.image_index.tolist()
    np.testing.assert_array_equal(expected["lam"], draws.lam)
    np.testing.assert_array_equal(expected["box"], draws.box)
    np.testing.assert_array_equal(expected["drop_path_mask"], plan.keep(2, ordinals, DROP_PATH))


def test_shapes_and_types(expected: dict[str, torch.Tensor]) -> None:
    facts = {name: (tuple(tensor.shape[1:]), tensor.dtype) for name, tensor in expected.items()}
    assert facts == {
        "images": ((3, SIDE, SIDE), torch.float32),
        "labels": ((), torch.int64),
        "lam": ((), torch.float32),
        "box": ((4,), torch.int32),
        "drop_path_mask": ((3, 2), torch.bool),
        "ordinals": ((), torch.int64),
        "image_index": ((), torch.int64),
    }


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("micro_batch", [2, 16, 32])
def test_micro_batches_and_threads_change_nothing(
    index, plan, expected, micro_batch: int, threads: int
) -> None:
    loader = train_loader(index, plan, micro_batch, num_threads=threads, prefetch=threads)
    assert loader.micro_steps == BATCH // micro_batch
    assert_same(joined(loader.epoch(2)), expected)


def test_a_thread_that_reads_ahead_changes_nothing(
    index: Index, plan: Plan, expected: dict[str, torch.Tensor]
) -> None:
    """Over the end of an epoch, after jumps, and with several micro-batches a step."""
    with closing(train_loader(index, plan, 16, read_ahead=True)) as loader:
        next(loader.epoch(0, first_step=1))
        passes = [[*loader.epoch(epoch)] for epoch in (1, 2)]
    assert_same(joined(passes[1]), expected)
    assert_same(joined(passes[0]), joined(train_loader(index, plan).epoch(1)))


@pytest.mark.parametrize("is_last", [False, True])
def test_nothing_is_made_ahead_beyond_the_last_epoch(
    index: Index, plan: Plan, is_last: bool
) -> None:
    with closing(train_loader(index, plan, 16, read_ahead=True)) as loader:
        assert len(list(loader.epoch(0, is_last=is_last))) == 8
        assert (loader._ahead._task is None) == is_last


@pytest.mark.gpu
@pytest.mark.parametrize(
    "form", [{"backend": "native"}, {"backend": "exact"}, {"uses_kernels": True}], ids=str
)
def test_a_thread_on_a_gpu_changes_nothing_in_50_batches(
    index: Index, plan: Plan, form: dict[str, Any]
) -> None:
    """A matrix product after each batch keeps the stream of the step busy."""
    work = torch.randn(2048, 2048, device="cuda")
    found = []
    for read_ahead in (False, True):
        held = []
        with closing(train_loader(index, plan, 8, device="gpu", read_ahead=read_ahead, **form)) as (
            loader
        ):
            for batch in itertools.islice(itertools.chain(*map(loader.epoch, range(4))), 50):
                work = torch.tanh(work @ work)
                held.append({name: getattr(batch, name).clone() for name in FIELDS})
        found.append(held)
    for one, other in zip(*found, strict=True):
        assert_same(one, other)


def test_the_first_batch_of_the_next_epoch_is_made_ahead(index: Index, plan: Plan) -> None:
    with closing(train_loader(index, plan, read_ahead=True)) as loader:
        assert len(list(loader.epoch(0))) == 2
        task = loader._ahead._task
        assert task is not None and task.number == 2
        batch, _ = task.future.result(60)
        assert batch.batch is next(loader.epoch(1))


class NoRecords:
    """A teacher cache in which nothing is recorded."""

    missed = 0

    def records(self, epoch: int, ordinals: np.ndarray, *_: Any) -> None:
        self.missed += len(ordinals)


def test_samples_without_a_record_count_when_they_are_used(index: Index, plan: Plan) -> None:
    records = NoRecords()
    with closing(train_loader(index, plan, 16, read_ahead=True, teacher_records=records)) as loader:
        batches = loader.epoch(0)
        next(batches)
        next(batches)
        task = loader._ahead._task
        assert task is not None and task.future.exception(60) is None
        assert records.missed == 48 and loader.unrecorded == 32


def test_micro_batches_may_have_14_samples(index: Index, plan: Plan) -> None:
    """A size that is no power of two: 56 = 4 * 14."""
    whole, parts = (
        joined(train_loader(index, plan, size, batch_size=56).epoch(0)) for size in (56, 14)
    )
    assert_same(parts, whole)


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_share_the_same_samples(index, plan, expected, world_size: int) -> None:
    ranks = [
        train_loader(index, plan, 8, rank=rank, world_size=world_size) for rank in range(world_size)
    ]
    assert_same(joined(batch for loader in ranks for batch in loader.epoch(2)), expected)


def test_the_partner_is_the_neighbouring_row(index: Index, plan: Plan) -> None:
    for batch in train_loader(index, plan, 16, rank=1, world_size=2).epoch(0):
        ordinals = batch.ordinals.numpy()
        np.testing.assert_array_equal(ordinals[np.arange(16) ^ 1], ordinals ^ 1)
        assert torch.equal(batch.lam[::2], batch.lam[1::2]) and torch.equal(
            batch.box[::2], batch.box[1::2]
        )


def test_number_of_batches(index: Index, plan: Plan) -> None:
    loader = train_loader(index, plan, 16)
    assert (loader.steps_per_epoch, loader.micro_steps) == (2, 4)
    assert len(list(loader.epoch(0))) == 8
    assert len(list(loader.epoch(0, first_step=1))) == 4
    assert list(loader.epoch(0, first_step=2)) == []


def test_an_epoch_may_start_in_the_middle(
    index: Index, plan: Plan, expected: dict[str, torch.Tensor]
) -> None:
    tail = joined(train_loader(index, plan, 16).epoch(2, first_step=1))
    assert_same(tail, {name: tensor[BATCH:] for name, tensor in expected.items()})


def test_epochs_may_come_in_any_order(
    index: Index, plan: Plan, expected: dict[str, torch.Tensor]
) -> None:
    loader = train_loader(index, plan, 16)
    for _ in zip(range(3), loader.epoch(1), strict=False):  # left in the middle
        pass
    assert_same(joined(loader.epoch(2)), expected)
    first = joined(loader.epoch(3))
    assert_same(joined(loader.epoch(2)), expected)
    assert_same(joined(loader.epoch(3)), first)


def test_nothing_is_planned_twice_over_an_epochs_end(
    index: Index, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []
    draw = plan.draw

    def spy(epoch: int, ordinals: np.ndarray) -> SampleParams:
        asked.append((epoch, len(ordinals)))
        return draw(epoch, ordinals)

    monkeypatch.setattr(plan, "draw", spy)
    loader = train_loader(index, plan, 32)
    for epoch in range(3):
        list(loader.epoch(epoch))
    # an epoch of 128 samples is drawn at once, and the queue runs ahead into the next
    assert asked == [(epoch, 2 * BATCH) for epoch in range(4)]


def test_the_next_order_is_prepared_from_the_middle_of_an_epoch(
    index: Index, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[tuple[str, int]] = []
    draw = plan.draw

    def spy(epoch: int, ordinals: np.ndarray) -> SampleParams:
        events.append(("draw", epoch))
        return draw(epoch, ordinals)

    monkeypatch.setattr(plan, "draw", spy)
    monkeypatch.setattr(plan, "prepare", lambda epoch: events.append(("prepare", epoch)))
    monkeypatch.setattr("fastdeit.data.loaders.train._PLANNED_AT_ONCE", 32)  # four blocks
    loader = train_loader(index, plan, 32)
    for _ in loader.epoch(0):
        pass
    loader.close()
    assert events[:6] == [("draw", 0)] * 2 + [("prepare", 1), ("draw", 0)] * 2


def test_images_stay_valid_while_held(index: Index, plan: Plan) -> None:
    loader = train_loader(index, plan, 8)
    held = [
        (batch.images, batch.images.clone()) for epoch in range(2) for batch in loader.epoch(epoch)
    ]
    loader.close()
    del loader
    assert all(torch.equal(images, copy) for images, copy in held)
    assert len({images.data_ptr() for images, _ in held}) == len(held)


def test_images_are_handed_over_without_a_copy(index: Index, plan: Plan) -> None:
    loader = train_loader(index, plan, 8)
    pipeline, places = loader._stream._pipeline, []

    class Spy:
        def run(self) -> tuple[object, ...]:
            (images,) = pipeline.run()  # type: ignore[union-attr]
            places.append(images.data_ptr())
            return (images,)

    loader._stream._pipeline = Spy()
    assert [batch.images.data_ptr() for batch in loader.epoch(0)] == places


def test_a_closed_loader_raises(index: Index, plan: Plan) -> None:
    loader = train_loader(index, plan, 8)
    loader.close()
    with pytest.raises(RuntimeError, match="closed"):
        next(loader.epoch(0))


def test_what_dali_reads_in_place_lives_as_long_as_its_pipeline(index: Index, plan: Plan) -> None:
    """Its threads read ahead when a loader is closed, and when a batch fails."""
    loader = train_loader(index, plan, 8)
    next(loader.epoch(0))
    stream = loader._stream
    pipeline = stream._pipeline
    fed = [weakref.ref(array) for batch in stream._ahead for array in batch.fed[1:]]
    assert fed
    stream._start(0)
    loader.close()
    del loader, stream
    gc.collect()
    assert all(array() is not None for array in fed)
    del pipeline
    gc.collect()
    assert all(array() is None for array in fed)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (
            {"batch_size": 62, "world_size": 4, "micro_batch": 2},
            r"batch_size must be a multiple of 8, for pairs on 4 ranks \(got 62\)",
        ),
        (
            {"batch_size": 64, "micro_batch": 7},
            r"micro_batch must be an even divisor of 64: \[2, 4, 8, 16, 32, 64\] \(got 7\)",
        ),
        ({"batch_size": 64, "micro_batch": 24}, "micro_batch must be an even divisor"),
        ({"batch_size": 64, "micro_batch": 0}, "micro_batch must be an even divisor"),
        (
            {"batch_size": 64, "world_size": 2, "micro_batch": 64},
            "micro_batch must be an even divisor of 32",
        ),
        ({"batch_size": 152, "micro_batch": 152}, "batch_size must be 1 to 150"),
    ],
)
def test_sizes_that_do_not_divide_are_refused(
    index: Index, plan: Plan, sizes: dict[str, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        train_loader(index, plan, **sizes)


@pytest.fixture
def copy(index: Index, tmp_path: Path) -> Index:
    """A data set to damage, already indexed."""
    shutil.copytree(index.root, tmp_path / "copy")
    return build_index(tmp_path / "copy", "train")


@pytest.mark.parametrize("read_ahead", [True, False])
@pytest.mark.parametrize("fault", ["cut", "gone", "smaller"])
def test_a_file_that_fails_while_training_is_named(
    copy: Index, plan: Plan, fault: str, read_ahead: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quarantine, "RETRIES_S", (0.01,))
    path = copy.root / copy.name(int(plan.draw(0, np.array([40])).image_index[0]))
    if fault == "cut":
        path.write_bytes(path.read_bytes()[:120])
    elif fault == "gone":
        path.unlink()
    else:
        Image.new("RGB", (1, 1)).save(path)
    with pytest.raises(DataError, match=path.name):
        held = Quarantine(copy, "error")
        list(train_loader(copy, plan, 16, quarantine=held, read_ahead=read_ahead).epoch(0))


def test_a_batch_that_fails_for_no_images_fault_ends_the_run(
    index: Index, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quarantine, "RETRIES_S", (0.01,))
    loader = train_loader(index, plan, 16)

    class Broken:
        def run(self) -> None:
            loader._stream._feed_next(loader._stream._generated, loader._stream._ahead)
            raise RuntimeError("out of memory")

    monkeypatch.setattr(loader._stream, "_build", lambda source: Broken())
    loader._stream._pipeline = Broken()  # type: ignore[assignment]
    with pytest.raises(
        RuntimeError, match="a batch fails, though each of its 9 images decodes alone"
    ):
        next(loader.epoch(0))


def test_batches_out_of_one_block_are_the_same(
    index, plan, expected, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        planned, "to_device_of", lambda images, *arrays: send_together(arrays, images.device)
    )
    batches = list(train_loader(index, plan, 16).epoch(2))
    assert (
        batches[0].labels.untyped_storage().data_ptr()
        == batches[0].drop_path_mask.untyped_storage().data_ptr()
    )
    assert_same(joined(batches), expected)


def test_nothing_is_copied_on_a_cpu(index: Index, plan: Plan) -> None:
    array = np.arange(5)
    (tensor,) = to_device_of(torch.zeros(1), array)
    assert np.shares_memory(tensor.numpy(), array)
    with Copies() as copies:
        list(train_loader(index, plan, 16).epoch(0))
    assert copies.made == []


IN_HOST_MEMORY = ("ordinals", "image_index")


@pytest.mark.gpu
def test_tensors_of_a_step_are_on_the_gpu(index: Index, plan: Plan) -> None:
    on_cpu = joined(train_loader(index, plan).epoch(0))
    with Copies() as copies:
        batches = list(train_loader(index, plan, device="gpu").epoch(0))
    assert copies.made == [("cuda", False)] * len(batches)
    assert all(
        getattr(batch, name).is_cuda == (name not in IN_HOST_MEMORY)
        for batch in batches
        for name in FIELDS
    )
    assert batches[0].images.dtype == torch.float16
    on_gpu = {name: tensor.cpu() for name, tensor in joined(batches).items()}
    assert_same(
        {
            name: on_gpu[name]
            for name in ("labels", "lam", "box", "drop_path_mask", *IN_HOST_MEMORY)
        },
        on_cpu,
    )
