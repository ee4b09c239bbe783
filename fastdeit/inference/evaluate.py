"""Any checkpoint scored on any data set: accuracies of each head, classes, calibration, confusions.

docs/evaluate.md describes each number. Pixels, answers and counts are those of timm's validate.py
and of the evaluation inside a run, which shares the code.
"""

import contextlib
import dataclasses
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from fastdeit.config.parse import Section, pair_teachers, require
from fastdeit.data.build import build_eval_index, choose_options
from fastdeit.data.index import Index
from fastdeit.data.loaders.evaluation import PADDING, EvalBatch, EvalLoader
from fastdeit.data.quarantine import Quarantine
from fastdeit.data.remote.stage import fetch_folder
from fastdeit.display.progress import track
from fastdeit.distributed.place import find_world, follows_group, on_first_rank
from fastdeit.distributed.world import World
from fastdeit.inference.class_maps import (
    ClassMap,
    list_names,
    match_classes,
    read_real_labels,
)
from fastdeit.inference.evaluation import Evaluation
from fastdeit.inference.load import LoadedModel, load_model
from fastdeit.inference.scores import Predictions, Recorder, measure, score_real
from fastdeit.inference.views import ViewOptions, change_view
from fastdeit.models.teachers.ensemble import LiveTeacher, load_teachers
from fastdeit.models.teachers.view import Preprocessing
from fastdeit.training.evaluation import Heads, evaluate, student_heads


@dataclass(frozen=True)
class LabelOptions(Section):
    """The right answers."""

    class_map: str = ""
    """How the classes of the data set match the outputs of the model; empty: by name. position,
    number, imagenet, or a file with the class of each output (.txt as timm's, or .json)."""
    valid_labels: str = "auto"
    """Outputs that are scored: all, data (those of the data set's classes), auto (data for
    ImageNet-A and ImageNet-R, else all), or a file with the number of an output in each line."""
    real_labels: str = ""
    """Score with the ReaL labels of ImageNet's validation images, too: timm, or a file as its
    imagenet_real_labels.json."""


@dataclass(frozen=True)
class ReadOptions(Section):
    """The reading of images."""

    batch_size: int = 256
    """Images in a batch, over all processes."""
    num_workers: int = 0
    """Threads that read and resize images in each process; 0: its share of the cores."""
    augment_backend: Literal["auto", "exact", "native"] = "auto"
    """exact: equal to PIL and timm, bit for bit; native: DALI's own resize; auto: exact, but native
    on a GPU with fewer than 8 threads."""
    bad_images: Literal["skip", "error"] = "skip"
    """skip: report damaged images and score the others; error: exit."""

    def check(self) -> None:
        self._require("batch_size", self.batch_size >= 1, "1 or more")
        self._require("num_workers", self.num_workers >= 0, "0 or more")
        backends = ("auto", "exact", "native")
        self._require("augment_backend", self.augment_backend in backends, "auto, exact or native")
        self._require("bad_images", self.bad_images in ("skip", "error"), "skip or error")


@dataclass(frozen=True)
class TeacherOptions(Section):
    """A teacher to compare with."""

    teacher_model: str = ""
    """The teacher, as in training; its accuracy and its agreement with each head are reported
    too."""
    teacher_path: str = ""
    """The weights of the teacher, as in training."""


@dataclass(frozen=True)
class EvalOptions:
    """The options of an evaluation, apart from a model and a data set."""

    labels: LabelOptions = field(default_factory=LabelOptions)
    reading: ReadOptions = field(default_factory=ReadOptions)
    teacher: TeacherOptions = field(default_factory=TeacherOptions)


@dataclass(frozen=True)
class _Questions:
    """The images, and which answers are right."""

    index: Index
    classes: ClassMap
    real: list[list[int]] | None
    """The classes that ReaL has for each image."""


def evaluate_checkpoint(
    source: str | Path,
    data_path: str | Path,
    split: str = "val",
    *,
    ema: bool = False,
    model: str = "",
    precision: str = "auto",
    **options: Any,
) -> dict[str, Any]:
    """Load a checkpoint, score it on a split of a data set, and return `Evaluation.describe()`.

    source, ema, model: as in `load_model`. split: in any form of training, or "." for class folders
    in data_path itself. precision: bf16, fp32, or auto, bf16 on a GPU. options: eval_input_size,
    eval_crop_ratio, mean, std, interpolation and crop_mode replace what the weights name
    (`ViewOptions`); fields of `LabelOptions`, `ReadOptions` and `TeacherOptions`. A collective of
    all ranks, if torch.distributed is initialised. Raises ValueError with one line for what cannot
    be scored.
    """
    world = find_world()
    dtype = find_dtype(precision, world)
    sections: dict[str, Any] = {
        part.name: _take(part.default_factory, options)  # type: ignore[arg-type]
        for part in dataclasses.fields(EvalOptions)
    }
    view: Any = _take(ViewOptions, options)
    if options:
        unknown = ", ".join(options)
        raise TypeError(f"evaluate_checkpoint() got an unexpected keyword argument: {unknown}")
    loaded = on_first_rank(
        world, lambda: load_model(source, ema=ema, model=model, device=world.device, dtype=dtype)
    )
    loaded = change_view(loaded, view.apply(loaded.view))
    root = fetch_folder(str(data_path), (split,), alone=not follows_group(world))
    done = evaluate_model(loaded, root, split, EvalOptions(**sections), world=world, ema=ema)
    return done.describe()


def _take(kind: type[Any], options: dict[str, Any]) -> Any:
    """Return a section made of its fields among the options, which are removed from them."""
    names = [part.name for part in dataclasses.fields(kind) if part.name in options]
    section = kind(**{name: options.pop(name) for name in names})
    section.check()
    return section


def find_dtype(precision: str, world: World) -> torch.dtype:
    """Return the dtype of a precision; `auto` is bf16 on a GPU and fp32 on a CPU. Raises ValueError
    for another name."""
    require(precision in ("auto", "bf16", "fp32"), "precision", precision, "auto, bf16 or fp32")
    is_half = precision == "bf16" or (precision == "auto" and world.device.type == "cuda")
    return torch.bfloat16 if is_half else torch.float32


def evaluate_model(
    loaded: LoadedModel,
    data_path: Path,
    split: str,
    options: EvalOptions,
    *,
    world: World,
    ema: bool = False,
) -> Evaluation:
    """Score a model on a split of a data set; a collective. ema: whether the results get the name
    `ema`. Raises ValueError, before any image is read, for what does not match, and DataError as
    the loader does."""
    heads = {"ema" if ema else "model": student_heads(loaded.model)}
    teacher = load_teacher_of(options.teacher, loaded, world.device)
    if teacher is not None:
        heads["teacher"] = lambda images: {"both": teacher(images)}
    asked = _prepare(loaded, data_path, split, options, world)
    recorder = Recorder()
    started = time.monotonic()
    with contextlib.closing(_build_loader(loaded, asked.index, options.reading, world)) as loader:
        results = evaluate(
            {name: select_outputs(head, asked.classes) for name, head in heads.items()},
            _relabel(_show_progress(loader, world), asked.classes),
            next(loaded.model.parameters()).dtype,
            recorder.add,
        )
    seconds = time.monotonic() - started
    predictions = recorder.gather()
    results |= measure(predictions) | score_real(predictions, asked.real)
    damaged = (*asked.index.excluded, *_list_failed(asked.index, predictions))
    return Evaluation(
        loaded=loaded,
        index=asked.index,
        classes=asked.classes,
        predictions=predictions,
        results=results,
        damaged=damaged,
        seconds=seconds,
    )


def _prepare(
    loaded: LoadedModel, data_path: Path, split: str, options: EvalOptions, world: World
) -> _Questions:
    """Return the images of a split, and the right answers in the model's outputs."""
    count = int(getattr(loaded.model, "num_classes", 0))
    require(count > 0, "model", loaded.name, "a model with a classifier")
    labels = options.labels
    maps = {"class_map": labels.class_map, "valid_labels": labels.valid_labels}
    names = list_names(loaded.classes, count, **maps)
    bad_images = options.reading.bad_images
    index = on_first_rank(world, lambda: build_eval_index(data_path, split, names, bad_images))
    classes = match_classes(index.classes, loaded.classes, count, **maps)
    if not labels.real_labels:
        return _Questions(index, classes, None)
    is_whole = count == 1000 and classes.outputs is None
    require(is_whole, "real_labels", labels.real_labels, "for a model of ImageNet's 1,000 classes")
    images = [index.name(row) for row in range(len(index))]
    return _Questions(index, classes, read_real_labels(labels.real_labels, images))


def load_teacher_of(
    options: TeacherOptions,
    loaded: LoadedModel,
    device: torch.device | str,
    asked: Mapping[str, Any] | None = None,
) -> LiveTeacher | None:
    """Load the teacher that the options name, for the images and the classes of a model; None if
    they name none. asked: as in `load_teacher`. Raises ValueError."""
    if not (options.teacher_model or options.teacher_path):
        return None
    view = loaded.view
    return load_teachers(
        pair_teachers(options.teacher_model, options.teacher_path),
        num_classes=int(loaded.model.num_classes),  # type: ignore[arg-type]
        classes=loaded.classes,
        device=device,
        dtype=next(loaded.model.parameters()).dtype,
        student=Preprocessing(view.mean, view.std, view.size),
        asked=asked,
    )


def _build_loader(
    loaded: LoadedModel, index: Index, reading: ReadOptions, world: World
) -> EvalLoader:
    view = loaded.view
    share = -(-len(index) // world.size)
    return EvalLoader(
        index,
        choose_options(
            world,
            mean=view.mean,
            std=view.std,
            num_workers=reading.num_workers,
            backend=reading.augment_backend,
        ),
        batch_size=max(1, min(reading.batch_size // world.size, share)),
        input_size=view.size,
        crop_pct=view.crop_pct,
        interpolation=view.interpolation,
        crop_mode=view.crop_mode,
        rank=world.rank,
        world_size=world.size,
        quarantine=Quarantine(index, reading.bad_images),
    )


def select_outputs(heads: Heads, classes: ClassMap) -> Heads:
    """Return a function like `heads` that returns only the scored outputs."""
    if classes.outputs is None:
        return heads
    outputs = list(classes.outputs)
    return lambda images: {name: logits[:, outputs] for name, logits in heads(images).items()}


def _show_progress(loader: EvalLoader, world: World) -> Iterable[EvalBatch]:
    return track(loader, len(loader), "batches") if world.rank == 0 else loader


def _relabel(batches: Iterable[EvalBatch], classes: ClassMap) -> Iterator[EvalBatch]:
    """Yield the batches with their labels as places among the scored outputs."""
    places = torch.tensor([*classes.labels, PADDING])  # PADDING is -1: the last
    for batch in batches:
        labels = places.to(batch.labels.device)[batch.labels]
        yield dataclasses.replace(batch, labels=labels)


def _list_failed(index: Index, predictions: Predictions) -> list[str]:
    """Return the images that failed in the course of the evaluation."""
    failed = set(range(len(index))) - set(predictions.rows.tolist())
    return [f"{index.name(row)}: could not be read or decoded" for row in sorted(failed)]
