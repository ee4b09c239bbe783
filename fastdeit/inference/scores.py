"""Scores of predictions: per class, calibration, confusions, agreement.

Of each image only its five best classes, its confidence and its loss are stored, some 30 bytes for
each head, so 50,000 images of 1,000 classes need no memory for logits. Everything is computed from
these, in the order of the images: any number of processes gives the same table.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist

from fastdeit.data.loaders.evaluation import PADDING, EvalBatch
from fastdeit.training.evaluation import Outputs

BINS = 15
"""The number of bins of the calibration error. Source: Guo et al. 2017 (1706.04599), section 5."""


@dataclass(frozen=True)
class Answers:
    """The answers of one head, one row for each image."""

    best: np.ndarray
    """The most probable classes, the first one first, int32 (N, 5 or fewer)."""
    confidence: np.ndarray
    """The probability of the first class, float32 (N,)."""
    loss: np.ndarray
    """-log of the probability of the true class, float32 (N,)."""


@dataclass(frozen=True)
class Predictions:
    """The answers of every head for all images that were scored, in the order of the index."""

    rows: np.ndarray
    """The rows of the index, int64 (N,)."""
    labels: np.ndarray
    """The true classes, int64 (N,)."""
    answers: Mapping[str, Answers]
    """The answers by MODEL/HEAD."""


class Recorder:
    """A recorder of the predictions of this process; `gather` joins those of all processes."""

    def __init__(self) -> None:
        self._parts: list[dict[str, np.ndarray]] = []

    def add(self, batch: EvalBatch, logits: Outputs, best: Outputs) -> None:
        """Add a batch, as `evaluate` does; logits: fp32. Rows of padding are skipped."""
        real = batch.labels != PADDING
        labels = batch.labels[real]
        part = {"rows": batch.image_index[real.cpu()], "labels": labels}
        for name, values in logits.items():
            answer = _answer(values[real], best[name][real], labels)
            part |= {f"{name}/{key}": value for key, value in answer.items()}
        self._parts.append({name: value.cpu().numpy() for name, value in part.items()})

    def gather(self) -> Predictions:
        """Return the predictions of all processes; a collective, if there are several."""
        mine = {key: np.concatenate([part[key] for part in self._parts]) for key in self._parts[0]}
        everyone = [mine]
        if dist.is_initialized():
            everyone = [mine] * dist.get_world_size()
            dist.all_gather_object(everyone, mine)
        whole = {key: np.concatenate([part[key] for part in everyone]) for key in mine}
        order = np.argsort(whole["rows"], kind="stable")
        whole = {key: values[order] for key, values in whole.items()}
        names = [key.removesuffix("/best") for key in whole if key.endswith("/best")]
        fields = Answers.__dataclass_fields__
        answers = {name: Answers(*(whole[f"{name}/{key}"] for key in fields)) for name in names}
        return Predictions(whole["rows"], whole["labels"], answers)


def _answer(
    logits: torch.Tensor, best: torch.Tensor, labels: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Return the fields of `Answers`."""
    log_probabilities = logits.log_softmax(1)
    return {
        "best": best.int(),
        "confidence": log_probabilities.amax(1).exp(),
        "loss": -log_probabilities.gather(1, labels[:, None])[:, 0],
    }


def measure(predictions: Predictions) -> dict[str, float]:
    """Return `MODEL/HEAD/nll` and `/ece` of each head, and `MODEL/heads_agreement` in percent of a
    model with two."""
    found: dict[str, float] = {}
    for name, answers in predictions.answers.items():
        hits = answers.best[:, 0] == predictions.labels
        found[f"{name}/nll"] = float(answers.loss.mean(dtype=np.float64))
        found[f"{name}/ece"] = calibration_error(answers.confidence, hits)
        twin = predictions.answers.get(f"{name.removesuffix('/cls')}/dist")
        if name.endswith("/cls") and twin is not None:
            same = answers.best[:, 0] == twin.best[:, 0]
            found[f"{name.removesuffix('/cls')}/heads_agreement"] = 100 * float(same.mean())
    return found


def calibration_error(confidence: np.ndarray, hits: np.ndarray, bins: int = BINS) -> float:
    """Return the expected calibration error, in percent: the mean over images of the distance
    between accuracy and mean confidence in the image's bin; bins of equal width, (low, high].

    Source: Guo et al. 2017 (1706.04599), equations 2, 3 and 5.
    """
    sure = np.nan_to_num(confidence.astype(np.float64))  # weights that are not finite have no bin
    place = np.ceil(sure * bins).astype(np.int64).clip(1, bins) - 1
    surplus = confidence.astype(np.float64) - hits
    gaps = np.bincount(place, weights=surplus, minlength=bins)
    return 100 * float(np.abs(gaps).sum() / len(hits))


def score_real(
    predictions: Predictions, allowed: Sequence[Sequence[int]] | None
) -> dict[str, float]:
    """Return `MODEL/HEAD/real_top1` and `/real_top5` in percent, where each image has a set of
    right classes; images whose set is empty do not count.

    allowed: the sets, by row of the index; None: there are none. Source: ReaL, Beyer et al. 2020
    (2006.07159), section 4.
    """
    if allowed is None:
        return {}
    sets = [set(allowed[row]) for row in predictions.rows.tolist()]
    counts = np.array([bool(right) for right in sets])
    found: dict[str, float] = {}
    for name, answers in predictions.answers.items():
        hits = [
            (row[0] in right, not right.isdisjoint(row))
            for row, right in zip(answers.best.tolist(), sets, strict=True)
        ]
        top1, top5 = 100 * np.array(hits)[counts].mean(0)
        found |= {f"{name}/real_top1": float(top1), f"{name}/real_top5": float(top5)}
    return found


class Confusion(NamedTuple):
    """The number of images of class `label` for which `predicted` was the answer."""

    label: int
    predicted: int
    images: int


def list_confusions(labels: np.ndarray, predicted: np.ndarray, most: int) -> list[Confusion]:
    """Return at most `most` confusions, the most frequent first; ties in the order of the classes.
    labels, predicted: int (N,)."""
    wrong = labels != predicted
    pairs = zip(labels[wrong].tolist(), predicted[wrong].tolist(), strict=True)
    counts = sorted(Counter(pairs).items(), key=lambda item: (-item[1], item[0]))
    return [Confusion(*pair, images) for pair, images in counts[:most]]


def score_classes(
    predictions: Predictions, model: str, names: Sequence[str]
) -> list[dict[str, Any]]:
    """Return a row for each class that has images, in their order: the class, its images, top-1 and
    top-5 of each head in percent, and the class that it is most often confused with.

    model: `model` or `ema`; names: of the classes.
    """
    labels = predictions.labels
    present = np.unique(labels).tolist()
    heads = {
        name.removeprefix(f"{model}/"): answers.best
        for name, answers in predictions.answers.items()
        if name.startswith(f"{model}/")
    }
    worst: dict[int, Confusion] = {}
    for confusion in list_confusions(labels, heads["both"][:, 0], len(labels)):
        worst.setdefault(confusion.label, confusion)
    columns = {
        f"{head}_{name}": _percent_by_class(labels, hits)
        for head, best in heads.items()
        for name, hits in _find_hits(best, labels).items()
    }
    counts = np.bincount(labels)
    return [
        {"class": names[label], "images": int(counts[label])}
        | {name: float(values[label]) for name, values in columns.items()}
        | _describe_worst(worst.get(label), names)
        for label in present
    ]


def _find_hits(best: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    return {"top1": best[:, 0] == labels, "top5": (best == labels[:, None]).any(1)}


def _percent_by_class(labels: np.ndarray, hits: np.ndarray) -> np.ndarray:
    counts = np.bincount(labels)
    return 100 * np.bincount(labels, weights=hits) / np.maximum(counts, 1)


def _describe_worst(worst: Confusion | None, names: Sequence[str]) -> dict[str, Any]:
    if worst is None:
        return {"confused_with": "", "confused_images": 0}
    return {"confused_with": names[worst.predicted], "confused_images": worst.images}
