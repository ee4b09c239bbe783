"""Tokens, attention and answers of any checkpoint, over some images of a data set.

docs/analyse.md describes each number. Images are read as the evaluation reads them, by this process
alone.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastdeit.analysis.disagreement import Disagreement, compare_answers
from fastdeit.analysis.trace import TokenAnalysis, summarise_traces, trace_images
from fastdeit.config.parse import require
from fastdeit.data.build import build_eval_index
from fastdeit.data.index import Index
from fastdeit.data.remote.stage import fetch_folder
from fastdeit.display.progress import track
from fastdeit.distributed.place import find_device
from fastdeit.inference.class_maps import ClassMap, list_names, match_classes
from fastdeit.inference.evaluate import TeacherOptions, load_teacher_of, select_outputs
from fastdeit.inference.images import choose_rows, read_rows
from fastdeit.inference.load import LoadedModel, load_model
from fastdeit.models.teachers.ensemble import LiveTeacher
from fastdeit.training.evaluation import Heads, student_heads

IMAGES = 128
"""The number of images unless another is chosen, as in figure 7 of Dosovitskiy et al. 2021
(2010.11929)."""
_BATCH = 16


@dataclass(frozen=True)
class Analysis:
    """The analysis of the tokens and heads of a checkpoint."""

    loaded: LoadedModel
    index: Index
    images: int
    """The number of images whose tokens and attention were measured."""
    found: TokenAnalysis
    disagreement: Disagreement | None
    """The disagreement of its heads, the teacher and other models; None: the classes do not
    match."""
    source: str
    """The answers that the disagreement compares, in words; or the reason why there is none."""

    def describe(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        parts = {name: getattr(self.found, name) for name in ("tokens", "distance")}
        parts["disagreement"] = self.disagreement
        found = {name: part and dataclasses.asdict(part) for name, part in parts.items()}
        return {
            "checkpoint": self.loaded.source,
            "model": self.loaded.name,
            "weights": self.loaded.weights,
            "data_path": str(self.index.root),
            "split": self.index.split,
            "images": self.images,
            **found,
            "answers": self.source,
            "notes": list(self.found.notes),
        }


def analyse_checkpoint(
    source: str | Path,
    data_path: str | Path,
    split: str = "val",
    *,
    images: int = IMAGES,
    ema: bool = False,
    model: str = "",
    other: str | Path = "",
    teacher_model: str = "",
    teacher_path: str = "",
    class_map: str = "",
) -> dict[str, Any]:
    """Load a checkpoint, measure its tokens, attention and answers on some images, and return
    `Analysis.describe()`.

    source, ema, model: as in `load_model`. split: as in `evaluate_checkpoint`. images: their
    number, spread evenly over the split; 0: all. other: a second checkpoint, whose answers are
    compared too; teacher_model, teacher_path: as in training. class_map: as in `LabelOptions`.
    Raises ValueError with one line for what cannot be used.
    """
    device = find_device(None)
    models = {"ema" if ema else "model": load_model(source, ema=ema, model=model, device=device)}
    if other:
        models["other"] = load_model(other, device=device)
    first, *_ = models.values()
    teacher = load_teacher_of(TeacherOptions(teacher_model, teacher_path), first, device)
    index = open_images(first, fetch_folder(str(data_path), (split,), alone=True), split, class_map)
    done = analyse_model(models, index, images, teacher=teacher, class_map=class_map)
    return done.describe()


def open_images(loaded: LoadedModel, root: Path, split: str, class_map: str) -> Index:
    """Return the index of a split for a model; damaged images are excluded. Raises ValueError for a
    split that cannot be used."""
    count = int(getattr(loaded.model, "num_classes", 0))
    names = list_names(loaded.classes, count, class_map=class_map) if count else ()
    return build_eval_index(root, split, names, "skip")


def analyse_model(
    models: Mapping[str, LoadedModel],
    index: Index,
    images: int,
    *,
    teacher: LiveTeacher | None = None,
    class_map: str = "",
    recorded: tuple[Disagreement, str] | None = None,
) -> Analysis:
    """Measure tokens and attention of the first of the models, and compare the answers of all.
    Raises ValueError for a negative number of images.

    models: by the name that the answers get: model, ema, other. images: their number, spread evenly
    over the index; 0: all. teacher: one for the images of the first model. recorded: a disagreement
    that is known, and its source in words.
    """
    require(images >= 0, "images", images, "0 or more")
    rows = choose_rows(len(index), images or len(index))
    loaded = next(iter(models.values()))
    disagreement, source = recorded or _compare(models, teacher, index, rows, class_map)
    found = trace_rows(loaded, index, rows)
    return Analysis(loaded, index, len(rows), found, disagreement, source)


def trace_rows(loaded: LoadedModel, index: Index, rows: Sequence[int]) -> TokenAnalysis:
    """Return the analysis of a model's tokens and attention on images of an index."""
    traces = []
    for batch in _divide(rows, "tokens"):
        trace = trace_images(loaded.model, _read(loaded, index, batch))
        traces.append(trace._replace(maps=trace.maps and trace.maps.of_image(0)))
    return summarise_traces(loaded.model, traces, loaded.view.size)


def _divide(rows: Sequence[int], what: str) -> Iterator[Sequence[int]]:
    """Yield batches of rows, and show the progress."""
    starts = range(0, len(rows), _BATCH)
    for start in track(starts, len(starts), f"batches for {what}"):
        yield rows[start : start + _BATCH]


def _read(loaded: LoadedModel, index: Index, rows: Sequence[int]) -> torch.Tensor:
    first = next(loaded.model.parameters())
    return read_rows(index, rows, loaded.view).to(first.device, first.dtype)


def _compare(
    models: Mapping[str, LoadedModel],
    teacher: LiveTeacher | None,
    index: Index,
    rows: Sequence[int],
    class_map: str,
) -> tuple[Disagreement | None, str]:
    """Return the disagreement of all heads on some images; None, with the reason, if the classes of
    a model do not match those of the data set."""
    try:
        maps = {name: _match(loaded, index, class_map) for name, loaded in models.items()}
    except ValueError as error:
        return None, str(error)
    answers: dict[str, np.ndarray] = {}
    for name, loaded in models.items():
        heads = student_heads(loaded.model)
        answers |= _answer(name, heads, maps[name], loaded, index, rows)
    name, loaded = next(iter(models.items()))
    classes = maps[name]
    if teacher is not None:
        heads = _join_teacher(teacher)
        answers |= _answer("teacher", heads, classes, loaded, index, rows)
    right = np.array(classes.labels)[index.labels[list(rows)]]
    labels = np.array(classes.names, object)[right]
    return compare_answers(labels, answers), f"of these {len(rows):,} images"


def _match(loaded: LoadedModel, index: Index, class_map: str) -> ClassMap:
    count = int(getattr(loaded.model, "num_classes", 0))
    require(count > 0, "model", loaded.name, "a model with a classifier")
    return match_classes(index.classes, loaded.classes, count, class_map=class_map)


def _join_teacher(teacher: LiveTeacher) -> Heads:
    return lambda images: {"both": teacher(images)}


@torch.no_grad()
def _answer(
    model: str,
    heads: Heads,
    classes: ClassMap,
    loaded: LoadedModel,
    index: Index,
    rows: Sequence[int],
) -> dict[str, np.ndarray]:
    """Return the name of the most probable class of each image, object (N,), by MODEL/HEAD.

    loaded: the model whose view and device the images have.
    """
    parts: dict[str, list[torch.Tensor]] = {}
    for batch in _divide(rows, f"answers of {model}"):
        images = _read(loaded, index, batch)
        for head, logits in select_outputs(heads, classes)(images).items():
            parts.setdefault(f"{model}/{head}", []).append(logits.argmax(1).cpu())
    names = np.array(classes.names, object)
    return {name: names[torch.cat(part).numpy()] for name, part in parts.items()}
