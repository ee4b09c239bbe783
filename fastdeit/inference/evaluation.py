"""The result of an evaluation: rows for classes, images and confusions; all of it as JSON."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastdeit.data.index import Index
from fastdeit.inference.class_maps import ClassMap
from fastdeit.inference.load import LoadedModel
from fastdeit.inference.scores import Predictions, list_confusions, score_classes

CONFUSIONS = 20
"""The largest number of pairs of classes that a report lists."""


@dataclass(frozen=True)
class Evaluation:
    """The predictions of a model for a data set, and the scores."""

    loaded: LoadedModel
    index: Index
    classes: ClassMap
    predictions: Predictions
    results: Mapping[str, float]
    """The scores by MODEL/HEAD/MEASURE; MODEL is `model`, `ema` or `teacher`."""
    damaged: tuple[str, ...]
    """Images that could not be read, each with its fault."""
    seconds: float
    """The seconds that reading and scoring took."""

    @property
    def model(self) -> str:
        """Return the MODEL of the results: `model` or `ema`."""
        return next(name.partition("/")[0] for name in self.predictions.answers)

    def list_classes(self) -> list[dict[str, Any]]:
        """Return a row for each class that has images."""
        return score_classes(self.predictions, self.model, self.classes.names)

    def list_images(self) -> list[dict[str, Any]]:
        """Return a row for each image: its name, its class, and each head's answer and
        confidence."""
        names = self.classes.names
        rows = []
        for place, row in enumerate(self.predictions.rows.tolist()):
            cells = {"image": self.index.name(row), "class": names[self.predictions.labels[place]]}
            for head, answers in self.predictions.answers.items():
                cells[f"{head}/class"] = names[answers.best[place, 0]]
                cells[f"{head}/confidence"] = round(float(answers.confidence[place]), 6)
            rows.append(cells)
        return rows

    def list_confusions(self) -> list[dict[str, Any]]:
        """Return the worst confusions of both heads together, as values by name."""
        predicted = self.predictions.answers[f"{self.model}/both"].best[:, 0]
        names = self.classes.names
        return [
            {"class": names[pair.label], "predicted": names[pair.predicted], "images": pair.images}
            for pair in list_confusions(self.predictions.labels, predicted, CONFUSIONS)
        ]

    def describe(self) -> dict[str, Any]:
        """Return everything but the single images, as JSON values."""
        return {
            "checkpoint": self.loaded.source,
            "model": self.loaded.name,
            "weights": self.loaded.weights,
            "data_path": str(self.index.root),
            "split": self.index.split,
            "view": self.loaded.view._asdict(),
            "classes": self.classes.description,
            "images": len(self.predictions.rows),
            "damaged": list(self.damaged),
            "images_per_s": len(self.predictions.rows) / self.seconds,
            "results": dict(self.results),
            "confusions": self.list_confusions(),
            "per_class": self.list_classes(),
        }
