"""Scores of predictions, against plain counts and against what the papers define."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from fastdeit.data.loaders.evaluation import PADDING, EvalBatch
from fastdeit.inference.scores import (
    Predictions,
    Recorder,
    calibration_error,
    list_confusions,
    measure,
    score_classes,
    score_real,
)
from fastdeit.training.evaluation import find_best_classes

COUNT, CLASSES = 200, 7


def record(logits: dict[str, torch.Tensor], labels: torch.Tensor, batch: int) -> Predictions:
    """Record in batches, the rows in reverse, each batch with a row of padding."""
    recorder = Recorder()
    for rows in torch.arange(len(labels)).flip(0).split(batch):
        padded = torch.cat((rows, rows[:1]))
        marked = torch.cat((labels[rows], torch.tensor([PADDING])))
        values = {name: all_[padded] for name, all_ in logits.items()}
        best = {name: find_best_classes(all_) for name, all_ in values.items()}
        recorder.add(EvalBatch(torch.zeros(0), marked, padded), values, best)
    return recorder.gather()


@pytest.fixture(scope="module")
def logits() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    cls, dist = torch.randn(2, COUNT, CLASSES) * 2
    return {"model/cls": cls, "model/dist": dist, "model/both": (cls + dist) / 2}


@pytest.fixture(scope="module")
def labels() -> torch.Tensor:
    return torch.randint(0, CLASSES - 1, (COUNT,), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("batch", [1, 7, COUNT])
def test_measures_equal_plain_ones_at_any_batch_size(
    logits: dict[str, torch.Tensor], labels: torch.Tensor, batch: int
) -> None:
    found = measure(record(logits, labels, batch))
    for name, values in logits.items():
        expected = functional.cross_entropy(values.double(), labels).item()
        assert found[f"{name}/nll"] == pytest.approx(expected, abs=1e-6)
    same = logits["model/cls"].argmax(1) == logits["model/dist"].argmax(1)
    assert found["model/heads_agreement"] == pytest.approx(100 * same.float().mean().item())


def test_calibration_error_is_guos() -> None:
    """Equation 3: the bins ((m - 1) / M, m / M], weighted by their images."""
    rng = np.random.default_rng(0)
    confidence = np.concatenate((rng.uniform(0.2, 1, 500), [1 / 3, 2 / 3, 1.0])).astype(np.float32)
    hits = rng.random(len(confidence)) < confidence**2
    expected = 0.0
    for m in range(1, 16):
        inside = (confidence > (m - 1) / 15) & (confidence <= m / 15)
        if inside.any():
            gap = abs(hits[inside].mean() - confidence[inside].astype(float).mean())
            expected += inside.mean() * gap
    assert calibration_error(confidence, hits) == pytest.approx(100 * expected, rel=1e-9)
    assert calibration_error(np.ones(4, np.float32), np.ones(4, bool)) == 0
    assert calibration_error(np.ones(4, np.float32), np.array([1, 1, 1, 0])) == 25
    # 0.5 is in (0.25, 0.5], not in the bin of 0.6
    found = calibration_error(np.array([0.5, 0.625], np.float32), np.array([1, 0]), bins=4)
    assert found == 100 * (0.5 + 0.625) / 2


def test_a_class_has_its_own_scores_and_its_worst_confusion(
    logits: dict[str, torch.Tensor], labels: torch.Tensor
) -> None:
    predictions = record(logits, labels, 32)
    names = [f"c{label}" for label in range(CLASSES)]
    rows = score_classes(predictions, "model", names)
    assert [row["class"] for row in rows] == names[:-1]  # the last has no image
    predicted = logits["model/both"].argmax(1)
    for label, row in enumerate(rows):
        mine = labels == label
        assert row["images"] == int(mine.sum())
        expected = 100 * (predicted[mine] == label).float().mean().item()
        assert row["both_top1"] == pytest.approx(expected, rel=1e-6)
        others = np.bincount(predicted[mine & (predicted != label)].numpy(), minlength=CLASSES)
        assert (row["confused_with"], row["confused_images"]) == (
            names[int(others.argmax())],
            others.max(),
        )


def test_confusions_are_counted_and_sorted() -> None:
    labels = np.array([0, 0, 0, 1, 1, 2, 2, 2])
    predicted = np.array([1, 1, 0, 0, 0, 0, 1, 2])
    found = list_confusions(labels, predicted, 3)
    assert [tuple(pair) for pair in found] == [(0, 1, 2), (1, 0, 2), (2, 0, 1)]


def test_real_counts_any_right_class_and_skips_images_without_one() -> None:
    logits = {"model/both": torch.eye(8)[[0, 1, 2, 3]]}
    predictions = record(logits, torch.zeros(4, dtype=torch.long), 2)
    found = score_real(predictions, [[0, 5], [2], [], [7, 1]])
    best = predictions.answers["model/both"].best
    fives = [np.isin(best[row], right).any() for row, right in ((0, [0, 5]), (1, [2]), (3, [7, 1]))]
    assert found["model/both/real_top1"] == pytest.approx(100 / 3)
    assert found["model/both/real_top5"] == pytest.approx(100 * np.mean(fives))
    assert score_real(predictions, None) == {}
