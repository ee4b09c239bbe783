"""The digest of the planned samples: it does not depend on ranks, micro-batches, order and
interruptions, and detects every change.

The elastic runs: stopped anywhere and continued in another form, each step has the samples of the
run that was never stopped.
"""

import dataclasses
import itertools
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastdeit.checkpoint.files import read_state, write_files
from fastdeit.checkpoint.store import list_checkpoints, load_checkpoint
from fastdeit.data.graphs.options import PipelineOptions
from fastdeit.data.index import Index
from fastdeit.data.indexing import build_index
from fastdeit.data.loaders.train import TrainLoader
from fastdeit.distributed.world import init_distributed
from fastdeit.plan.digest import add_digests, sample_digests, show_digest
from fastdeit.plan.plan import Plan, SampleParams
from fastdeit.plan.spec import PlanSpec
from tests.support.cache_runs import Setting
from tests.support.compare_runs import EPOCHS, FLAGS, assert_same_samples, steps_of
from tests.support.images import write_shapes

BATCH, SIDE, STEPS = 16, 32, 3
RATES = (0.3,) * 5
SPEC = PlanSpec(seed=5, input_size=SIDE, reprob=0.5, color_jitter=0.3)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    data = write_shapes(tmp_path_factory.mktemp("shapes") / "data", train=17)  # 51 images
    return build_index(data, "train")


def loaders(index: Index, world_size: int, micro_batch: int, **changes: int) -> list[TrainLoader]:
    """Return the loader of every rank of a simulated world; no image is read."""
    options = PipelineOptions((0.5,) * 3, (0.5,) * 3, num_threads=1)
    sizes = {"batch_size": BATCH, "micro_batch": micro_batch, "world_size": world_size}
    one: list[dict[str, Any]] = [{"rank": rank, **sizes, **changes} for rank in range(world_size)]
    return [
        TrainLoader(index, Plan(SPEC, index.sizes), options, drop_path=RATES, **each)
        for each in one
    ]


def digest_of(ranks: Sequence[TrainLoader], step: int) -> int:
    """Return the digest of a step of the run, as its batches would have it."""
    micros = ranks[0].micro_steps
    return add_digests(
        *(
            one.plan_batch(step * micros + micro)[0].digests
            for one in ranks
            for micro in range(micros)
        )
    )


@pytest.fixture(scope="module")
def expected(index: Index) -> list[int]:
    return [digest_of(loaders(index, 1, BATCH), step) for step in range(4 * STEPS)]


@pytest.mark.parametrize(
    ("world_size", "micro_batch"), [(1, 4), (1, 2), (2, 8), (2, 4), (4, 4), (4, 2), (8, 2)]
)
def test_digests_of_steps_do_not_depend_on_the_world_size(
    index: Index, expected: list[int], world_size: int, micro_batch: int
) -> None:
    ranks = loaders(index, world_size, micro_batch)
    assert ranks[0].steps_per_epoch == STEPS and len(set(expected)) == len(expected)
    assert [digest_of(ranks, step) for step in range(4 * STEPS)] == expected


@pytest.mark.parametrize("stop", [1, STEPS, STEPS + 2, 3 * STEPS])
@pytest.mark.parametrize("worlds", [(1, 2), (2, 1), (4, 8), (8, 1)])
def test_digests_stay_equal_when_a_run_resumes_in_another_world(
    index: Index, expected: list[int], stop: int, worlds: tuple[int, int]
) -> None:
    before, after = (loaders(index, world, 2) for world in worlds)
    digests = [digest_of(before, step) for step in range(stop)]
    assert digests + [digest_of(after, step) for step in range(stop, 4 * STEPS)] == expected


def test_a_batch_has_the_digest_of_its_rows(index: Index, expected: list[int]) -> None:
    one = loaders(index, 1, 8)[0]
    batches = list(one.epoch(1))
    assert [
        add_digests(first.digest, second.digest)
        for first, second in zip(batches[::2], batches[1::2], strict=True)
    ] == (expected[STEPS : 2 * STEPS])


def test_the_digest_of_a_period_differs_from_epoch_to_epoch(index: Index) -> None:
    """The samples repeat; DropPath's bits and the steps do not."""
    one = loaders(index, 1, BATCH, period=1)
    assert digest_of(one, 0) != digest_of(one, STEPS)


Planned = tuple[np.ndarray, int, np.ndarray, SampleParams, np.ndarray]


def planned(index: Index) -> Planned:
    """Return arguments of `sample_digests`."""
    plan, ordinals = Plan(SPEC, index.sizes), np.arange(32)
    return ordinals // BATCH, 2, ordinals, plan.draw(2, ordinals), plan.keep(2, ordinals, RATES)


def changes(array: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yield copies in which the last bit, the first bit or all bits of one element differ: the row,
    and the copy."""
    octets = array.dtype.itemsize
    for place in np.ndindex(array.shape):
        flips: list[tuple[Any, int]] = (
            [(0, 1)] if array.dtype == bool else [(0, 1), (octets - 1, 128), (slice(None), 255)]
        )
        for octet, mask in flips:
            copy = array.copy()
            bits = copy[(*place, None)].view(np.uint8)
            bits[octet] ^= mask
            copy[place] = bits.view(array.dtype)[0]
            yield place[0], copy


def test_a_change_of_any_field_of_any_sample_changes_its_hash_and_no_other(index: Index) -> None:
    steps, epoch, ordinals, draws, keep = planned(index)
    before = sample_digests(*planned(index))
    everything = {field.name: getattr(draws, field.name) for field in dataclasses.fields(draws)}
    everything |= {"steps": steps, "ordinals": ordinals, "keep": keep}
    tried = 0
    for name, array in everything.items():
        for row, changed in changes(array):
            own = {"steps": steps, "ordinals": ordinals, "keep": keep} | {name: changed}
            other = dataclasses.replace(
                draws, **({} if name in ("steps", "ordinals", "keep") else {name: changed})
            )
            after = sample_digests(own["steps"], epoch, own["ordinals"], other, own["keep"])
            assert np.flatnonzero(after != before).tolist() == [row], name
            assert add_digests(after) != add_digests(before)
            tried += 1
    assert tried > 32 * 40 * 2
    assert (sample_digests(steps, epoch + 1, ordinals, draws, keep) != before).all()


def test_two_changes_of_a_sample_do_not_cancel(index: Index) -> None:
    """Of the highest bits above all, as the signs of two arguments: modulo 2^64 twice 2^63 would be
    nothing."""
    steps, epoch, ordinals, draws, keep = planned(index)
    numbers = {name: array for name, array in vars(draws).items() if array.dtype != bool}
    places = [
        (name, place)
        for name, array in numbers.items()
        for place in np.ndindex(array.shape)
        if place[0] == 3
    ]
    seen = {add_digests(sample_digests(*planned(index)))}
    pairs = list(itertools.combinations(places, 2))
    for pair in pairs:
        changed = {name: numbers[name].copy() for name, _ in pair}
        for name, place in pair:
            bits = changed[name][(*place, None)].view(np.uint8)
            bits[-1] ^= 128
            changed[name][place] = bits.view(changed[name].dtype)[0]
        seen.add(
            add_digests(
                sample_digests(steps, epoch, ordinals, dataclasses.replace(draws, **changed), keep)
            )
        )
    assert len(seen) == len(pairs) + 1 > 300


def test_swapped_samples_and_shifted_steps_change_the_digest(index: Index) -> None:
    steps, epoch, ordinals, draws, keep = planned(index)
    whole = add_digests(sample_digests(steps, epoch, ordinals, draws, keep))
    swapped = np.arange(32)
    swapped[[3, 21]] = 21, 3  # of other steps
    fields = {
        field.name: getattr(draws, field.name)[swapped] for field in dataclasses.fields(draws)
    }
    theirs = sample_digests(steps, epoch, ordinals, SampleParams(**fields), keep[swapped])
    assert add_digests(theirs) != whole
    assert add_digests(sample_digests(steps[swapped], epoch, ordinals, draws, keep)) != whole
    assert add_digests(sample_digests(steps + 1, epoch, ordinals, draws, keep)) != whole
    back = SampleParams(**{name: value[::-1] for name, value in vars(draws).items()})
    assert (
        add_digests(sample_digests(steps[::-1], epoch, ordinals[::-1], back, keep[::-1])) == whole
    )


def test_sums_are_exact_and_do_not_depend_on_the_order() -> None:
    hashes = np.random.default_rng(0).integers(0, 2**64, 10_000, np.uint64)
    assert (
        add_digests(hashes)
        == sum(map(int, hashes)) % 2**64
        == add_digests(hashes[5000:], int(hashes[:5000].sum()))
    )
    assert show_digest(add_digests(np.array([2**64 - 1, 3], np.uint64))) == "0000000000000002"


def test_the_digest_is_the_same_on_every_machine() -> None:
    """And of other versions: runs are compared by it."""
    plan, ordinals = Plan(PlanSpec(seed=1, input_size=64), np.full((100, 2), 80)), np.arange(64)
    found = sample_digests(
        ordinals // 16, 0, ordinals, plan.draw(0, ordinals), plan.keep(0, ordinals, (0.1, 0.2))
    )
    assert show_digest(add_digests(found)) == "d4befc8ba134ae5a"


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    init_distributed()
    return Setting(tmp_path_factory.mktemp("elastic"))


@pytest.fixture(scope="module")
def whole(setting: Setting) -> Path:
    """A run that was never stopped, at ZeRO 1, the whole batch at once."""
    folder = setting.root / "whole"
    assert setting.train(folder, *setting.taught, *FLAGS, epochs=EPOCHS) == 0
    return folder


@pytest.mark.parametrize(
    "forms",
    [
        [("1", "16", 1), ("2", "4", 0)],
        [("2", "2", 3), ("3", "8", 5), ("0", "16", 0)],
    ],
    ids=["in mid-epoch", "at an epoch's end and in mid-epoch"],
)
def test_a_run_stopped_and_continued_in_another_form_is_the_same_run(
    forms: list[tuple[str, str, int]], setting: Setting, whole: Path, tmp_path: Path
) -> None:
    """forms: ZeRO stage, micro-batch, and after how many steps to stop; 0: the end."""
    for stage, micro_batch, stop in forms:
        flags = [
            "--zero-stage",
            stage,
            "--micro-batch",
            micro_batch,
            "--stop-after-steps",
            str(stop),
        ]
        assert setting.train(tmp_path, *setting.taught, *FLAGS, *flags, epochs=EPOCHS) == 0
    assert_same_samples(tmp_path, whole)


def test_a_checkpoint_holds_the_digest_of_all_steps_before(setting: Setting, whole: Path) -> None:
    lines = {line["step"]: line["digest"] for line in steps_of(whole)}
    states = [read_state(path) for path in list_checkpoints(whole / "checkpoints")]
    assert {state["step"]: state["digest"] for state in states} == {
        step: lines[step] for step in (9, 12)
    }


def test_a_checkpoint_without_a_digest_is_restored(
    setting: Setting, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From there on the digest is that of the steps after it."""
    flags = [*setting.taught, *FLAGS]
    assert setting.train(tmp_path, *flags, "--stop-after-steps", "7", epochs=EPOCHS) == 0
    for path in list_checkpoints(tmp_path / "checkpoints"):
        tensors, state = load_checkpoint(path)
        del state["digest"]
        shutil.rmtree(path)
        path.mkdir()
        write_files(path, tensors, state)
    assert setting.train(tmp_path, *flags, epochs=EPOCHS) == 0
    assert "counts samples from step 7 only" in " ".join(capsys.readouterr().out.split())
    digests = [
        [int(line["digest"], 16) for line in steps_of(folder)] for folder in (tmp_path, whole)
    ]
    assert digests[0][:7] == digests[1][:7]
    assert digests[0][7:] == [(digest - digests[1][6]) % 2**64 for digest in digests[1][7:]]
