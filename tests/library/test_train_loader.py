"""The training loader: what it yields, in which order, and how it resumes."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from timm.data.mixup import mixup_target

from fastdeit.data.formats.digits import write_digits
from fastdeit.data.loaders.batch import Batch
from fastdeit.library.loader import Loader, soften
from fastdeit.library.train_loader import create_loader

SETTINGS: dict[str, Any] = {"input_size": 16, "batch_size": 200, "seed": 3, "device": "cpu"}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("digits")
    write_digits(root)
    return root


@pytest.fixture
def create(digits: Path) -> Iterator[Any]:
    """Return `create_loader` for the digits; the loaders are closed after the test."""
    made: list[Loader] = []

    def build(**settings: Any) -> Loader:
        made.append(create_loader(digits, **(SETTINGS | settings)))
        return made[-1]

    yield build
    for loader in made:
        loader.close()


def ordinals(batches: Any) -> list[list[int]]:
    return [batch.image_index.tolist() for batch in batches]


def test_it_yields_mixed_images_and_soft_targets(create: Any) -> None:
    loader = create(smoothing=0.1)
    images, targets = next(iter(loader))
    assert images.shape == (200, 3, 16, 16) and images.dtype == torch.float32
    assert targets.shape == (200, 10) and targets.dtype == torch.float32
    torch.testing.assert_close(targets.sum(1), torch.ones(200))
    assert len(loader) == len(list(loader)) == len(loader.dataset) // 200
    raw: Batch = next(iter(create(raw=True)))
    assert not torch.equal(raw.images, images)  # before mixing


def test_targets_are_those_of_timm() -> None:
    labels = torch.tensor([3, 1, 2, 2])
    lam = torch.tensor([0.3, 0.3, 0.75, 0.75])
    ours = soften(labels, lam, 5, 0.1)
    for row in range(4):
        # timm mixes row i with row B - 1 - i
        pair = torch.stack([labels[row], labels[row ^ 1]])
        theirs = mixup_target(pair, 5, float(lam[row]), 0.1)
        torch.testing.assert_close(ours[row], theirs[0], rtol=0, atol=1e-7)


def test_every_pass_is_the_next_epoch(create: Any) -> None:
    loader = create(raw=True)
    first = ordinals(loader)
    second = ordinals(loader)
    assert sorted(sum(first, [])) != sum(first, []) and first != second
    loader.set_epoch(0)
    assert ordinals(loader) == first
    assert ordinals(itertools.islice(loader, 1)) == second[:1]
    assert ordinals(loader) not in (first, second)  # the unfinished pass was an epoch
    for epoch, expected in ((1, second), (1, second), (0, first)):
        loader.set_epoch(epoch)
        assert ordinals(loader) == expected


@pytest.mark.parametrize("batches", [0, 2, 7])
def test_a_state_continues_in_mid_epoch_with_the_same_pixels(create: Any, batches: int) -> None:
    loader = create()
    assert len(loader) == 7
    stream = iter(loader)
    for _ in range(batches):
        next(stream)
    state = json.loads(json.dumps(loader.state_dict()))
    rest = [*stream, *itertools.islice(loader, 1)]
    again = create()
    again.load_state_dict(state)
    again.set_epoch(0)  # as a training loop that resumes does
    resumed = [*again, *itertools.islice(again, 1)]
    assert len(rest) == len(resumed) == 7 - batches + 1
    for (images, targets), (images_again, targets_again) in zip(rest, resumed, strict=True):
        assert torch.equal(images, images_again) and torch.equal(targets, targets_again)


def test_a_state_counts_the_batches_of_the_epoch_also_after_a_resumed_start(create: Any) -> None:
    loader = create(raw=True)
    loader.load_state_dict(loader.state_dict() | {"batch": 5})
    places = []
    for _ in loader:
        state = loader.state_dict()
        places.append((state["epoch"], state["batch"]))
    assert places == [(0, 6), (0, 7)]
    after = loader.state_dict()
    assert (after["epoch"], after["batch"]) == (1, 0)


def test_another_epoch_than_that_of_the_state_begins_at_its_first_batch(create: Any) -> None:
    loader = create(raw=True)
    loader.load_state_dict(loader.state_dict() | {"epoch": 1, "batch": 3})
    loader.set_epoch(0)
    assert len(ordinals(loader)) == len(loader)


def test_a_state_of_another_plan_is_refused(create: Any) -> None:
    state = create().state_dict()
    for change, name in (({"seed": 4}, "plan"), ({"batch_size": 100}, "batch_size")):
        with pytest.raises(ValueError, match=rf"^state\['{name}'\] must be"):
            create(**change).load_state_dict(state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": 8}, r"^state\['batch'\] must be 0 to 7 \(got 8\)$"),
        ({"epoch": -1}, r"^state\['epoch'\] must be 0 or more"),
        ({"excluded": [10**6]}, r"^state\['excluded'\] must be rows of the index"),
        ({"excluded": None}, r"^state\['excluded'\] must be"),
        ({"version": 2}, r"^state\['version'\] must be 1"),
    ],
)
def test_a_damaged_state_is_refused(create: Any, change: dict[str, Any], message: str) -> None:
    loader = create()
    with pytest.raises(ValueError, match=message):
        loader.load_state_dict(loader.state_dict() | change)
    assert loader.state_dict()["batch"] == 0


def test_what_is_no_state_and_no_epoch_is_refused(create: Any) -> None:
    loader = create()
    with pytest.raises(ValueError, match="^state must be what state_dict returned"):
        loader.load_state_dict(None)
    for epoch in (-1, 1.5):
        with pytest.raises(ValueError, match="^epoch must be an integer of at least 0"):
            loader.set_epoch(epoch)
    loader.set_epoch(np.int64(2))
    assert json.loads(json.dumps(loader.state_dict()))["epoch"] == 2


@pytest.mark.parametrize("read_ahead", ["on", "off"])
def test_images_of_a_state_are_not_in_batches_made_before_it_was_loaded(
    create: Any, read_ahead: str
) -> None:
    one, other, *_ = ordinals(create(raw=True))
    gone = min(set(other) - set(one))
    loader = create(raw=True, read_ahead=read_ahead)
    next(iter(loader))
    loader.load_state_dict(loader.state_dict() | {"excluded": [gone]})
    assert gone not in next(iter(loader)).image_index.tolist()


def test_images_excluded_before_the_state_stay_excluded(create: Any) -> None:
    loader = create(raw=True)
    gone = int(next(iter(loader)).image_index[0])
    loader.load_state_dict(loader.state_dict() | {"excluded": [gone]})
    loader.set_epoch(3)
    assert gone not in sum(ordinals(loader), []) and loader.state_dict()["excluded"] == [gone]


def test_any_number_of_ranks_gives_the_same_samples_in_the_same_step(create: Any) -> None:
    one = ordinals(create(raw=True))
    ranks = [create(raw=True, rank=rank, world_size=2) for rank in range(2)]
    assert all(len(loader) == len(one) for loader in ranks)
    for step, parts in enumerate(zip(*map(ordinals, ranks), strict=True)):
        assert sorted(sum(parts, [])) == sorted(one[step]) and len(parts[0]) == 100
    state = ranks[0].state_dict()
    alone = create(raw=True)
    alone.load_state_dict(state)  # from two ranks to one


def test_mixing_can_be_switched_off(create: Any) -> None:
    loader = create()
    loader.mixup_enabled = False
    images, targets = next(iter(loader))
    raw = next(iter(create(raw=True)))
    assert torch.equal(images, raw.images)
    assert torch.equal(targets.argmax(1), raw.labels) and int((targets > 0.5).sum()) == 200


def test_a_drop_path_mask_is_drawn_for_the_rates(create: Any) -> None:
    mask = next(iter(create(raw=True, drop_path_rates=(0.0, 0.5)))).drop_path_mask
    assert mask.shape == (200, 2, 2) and bool(mask[:, 0].all()) and not bool(mask[:, 1].all())


def test_timm_and_lightning_find_set_epoch(create: Any) -> None:
    loader = create(raw=True)
    assert not hasattr(loader.dataset, "set_epoch")
    loader.batch_sampler.set_epoch(1)
    assert loader.state_dict()["epoch"] == 1
    loader.sampler.set_epoch(2)
    assert loader.state_dict()["epoch"] == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 3}, r"^batch_size must be an even number of at least 2 \(got 3\)$"),
        ({"batch_size": 6, "world_size": 2}, r"^batch_size must be a multiple of 4, for pairs"),
        ({"batch_size": 4000}, r"^batch_size must be 1 to 14\d\d, the number of training"),
        ({"batch_size": 0}, r"^batch_size must be "),
        ({"aa": "augmix"}, r"^aa must be none, 3a, or as rand-"),
        ({"reprob": 2.0}, r"^reprob must be a probability"),
        ({"input_size": "16"}, r"^create_loader: input_size must be int \(got '16'\)$"),
        ({"repeats": 0}, r"^repeats must be 1 or more"),
        ({"rank": 2, "world_size": 2}, r"^rank must be 0 to 1"),
        ({"device": "meta"}, r"^device must be one of cpu"),
        ({"split": "test"}, r"test"),
        ({"decoder": "mixed"}, r"^decoder must be cpu with augment_backend exact"),
    ],
)
def test_a_bad_argument_is_named(create: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        create(**settings)
    assert "--" not in str(caught.value)


def test_a_missing_folder_and_an_unknown_argument_are_named(digits: Path) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match="nowhere"):
        create_loader("nowhere", batch_size=8)
    with pytest.raises(ValueError, match="^path must be the folder of a data set"):
        create_loader("", batch_size=8)
    with pytest.raises(TypeError, match="no keyword argument 'mixup_alpha'; near: mixup"):
        create_loader(digits, batch_size=8, mixup_alpha=1.0)  # type: ignore[call-arg]
