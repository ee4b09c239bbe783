"""`fastdeit predict IMAGES... --checkpoint WEIGHTS`: name the classes in images.

Exit codes: 0; 1 if an image could not be read (the others are predicted); 2 for a mistake in the
command line or the weights.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from rich.table import Column, Table

from fastdeit.analysis.attention_maps import AttentionMaps, check_attention
from fastdeit.commands.errors import one_line_errors
from fastdeit.commands.flags import CHECKPOINT, WeightsFlags
from fastdeit.commands.output import check_file, check_table, print_json, write_table
from fastdeit.config.options import parse_options
from fastdeit.config.parse import Section, require
from fastdeit.display.pixels import denormalise
from fastdeit.display.progress import track
from fastdeit.display.terminal import Terminal, note_failure
from fastdeit.inference.class_names import ClassName, name_classes
from fastdeit.inference.images import find_images
from fastdeit.inference.load import LoadedModel, load_model
from fastdeit.inference.predict import Prediction, predict_images, rank_classes
from fastdeit.inference.views import ViewOptions, change_view
from fastdeit.storage.atomic import atomic_open

_HEADS = {"both": "both heads", "cls": "class head", "dist": "distillation head"}


@dataclass(frozen=True)
class ReadFlags(Section):
    """The reading of images."""

    exif_rotate: bool = False
    """Rotate images by their EXIF orientation; training uses them as stored."""
    batch_size: int = 32
    """Images in a batch."""
    num_workers: int = 0
    """Threads that read images; 0: one for each core."""

    def check(self) -> None:
        self._require_each(["batch_size"], 1)
        self._require_each(["num_workers"], 0)


@dataclass(frozen=True)
class ResultFlags(Section):
    """The results to print and write."""

    top_k: int = 5
    """Number of classes for each image, the most probable ones."""
    json: bool = False
    """Print one JSON value in place of tables."""
    output: str = ""
    """Also write a table, FILE.csv or FILE.json: a row for each image and class."""
    attention: str = ""
    """Also draw attention maps, FILE.png; for several images FILE-1.png, FILE-2.png, ..."""

    def check(self) -> None:
        self._require_each(["top_k"], 1)
        if self.output:
            check_table(self.output)
        if self.attention:
            check_file(self.attention, (".png",), "attention")


@dataclass(frozen=True)
class PredictOptions:
    """The flags of `fastdeit predict`."""

    images: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="IMAGE ...")]
    """Files, folders (with all images below them), or quoted patterns, as 'photos/**/*.jpg'."""
    checkpoint: Annotated[str, CHECKPOINT]
    weights: WeightsFlags = field(default_factory=WeightsFlags)
    view: ViewOptions = field(default_factory=ViewOptions)
    read: ReadFlags = field(default_factory=ReadFlags)
    result: ResultFlags = field(default_factory=ResultFlags)


def predict_command(argv: Sequence[str]) -> int:
    """Run `fastdeit predict`; return 0, or 1 if an image could not be read.

    Exit with code 2 for a command line, weights or a place of images that cannot be used.
    """
    with one_line_errors():
        options = parse_options(argv, PredictOptions, "fastdeit predict", __doc__ or "")
        paths = find_images(options.images)
        loaded = _load(options)
        num_classes: Any = loaded.model.num_classes
        classes = name_classes(loaded.classes, num_classes)
        entries = []
        for number, prediction in enumerate(_predict(loaded, paths, options), 1):
            entry = _describe(prediction, classes, options)
            if options.result.attention:
                sheet = _name_sheet(Path(options.result.attention), number, len(paths))
                entry["attention"] = _draw(sheet, loaded, prediction, entry)
            entries.append(entry)
            _show(entry, as_json=options.result.json)
        _report(options.result, loaded, entries)
    return 1 if any(entry["fault"] for entry in entries) else 0


def _load(options: PredictOptions) -> LoadedModel:
    weights = options.weights
    loaded = load_model(
        options.checkpoint, ema=weights.ema, model=weights.model, device=weights.find_device()
    )
    if options.result.attention:
        try:
            check_attention(loaded.model)
        except ValueError as error:
            allowed = "used with a Vision Transformer that has a class token"
            require(False, "attention", f"{loaded.name}: {error}", allowed)
    return change_view(loaded, options.view.apply(loaded.view))


def _predict(
    loaded: LoadedModel, paths: Sequence[str], options: PredictOptions
) -> Iterator[Prediction]:
    predictions = predict_images(
        loaded,
        paths,
        batch_size=options.read.batch_size,
        num_workers=options.read.num_workers,
        exif_rotate=options.read.exif_rotate,
        with_attention=bool(options.result.attention),
    )
    # the tables of a terminal show the progress themselves
    return track(predictions, len(paths), "predicting") if options.result.json else predictions


def _describe(
    prediction: Prediction, classes: Sequence[ClassName], options: PredictOptions
) -> dict[str, Any]:
    """Return the JSON value of an image: its fault, or its most probable classes."""
    image = prediction.image
    is_turned = image.orientation > 1 and options.read.exif_rotate
    ranked = rank_classes(prediction, options.result.top_k)
    first = {head: int(values.argmax()) for head, values in prediction.probabilities.items()}
    return {
        "image": image.path,
        "fault": image.fault,
        "exif_orientation": image.orientation,
        "exif_applied": is_turned,
        "first": {head: classes[label].name for head, label in first.items()},
        "classes": [
            {"label": label, **classes[label]._asdict(), **probabilities}
            for label, probabilities in ranked
        ],
    }


def _name_sheet(path: Path, number: int, count: int) -> Path:
    """Return the file of an image's attention maps: the given one if there is one image."""
    return path if count == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")


def _draw(
    sheet: Path, loaded: LoadedModel, prediction: Prediction, entry: Mapping[str, Any]
) -> str | None:
    """Draw an image's attention maps, if it has any; return the file, or None, with a note, if that
    fails."""
    if prediction.image.pixels is None or prediction.maps is None:
        return None
    pixels = denormalise(prediction.image.pixels, loaded.view.mean, loaded.view.std)
    best = entry["classes"][0]
    title = f"{Path(entry['image']).name}: {_name_class(best)}, {best['both']:.1%}"
    with note_failure(str(sheet), Terminal(stderr=True).say):
        from fastdeit.display.figures import save_heat_maps  # matplotlib imports slowly

        with atomic_open(sheet) as file:
            save_heat_maps(file, pixels, _arrange_maps(prediction.maps), title)
        return str(sheet)
    return None


def _arrange_maps(maps: AttentionMaps) -> list[list[tuple[str, np.ndarray]]]:
    """Return names and maps, (h, w), in rows: rollout and the mean of the last layer's heads, then
    two heads a row; each for CLS and, beside it, for DIST."""
    last = maps.heads[0]  # (T, H, h, w)
    named = {"rollout": maps.rollout[0], "mean of heads": last.mean(1)}
    named |= {f"head {head + 1}": last[:, head] for head in range(last.shape[1])}
    cells = []
    for name, by_token in named.items():
        pair = zip(maps.tokens, by_token.numpy(), strict=True)
        cells.append([(f"{token} {name}", heat) for token, heat in pair])
    return [sum(cells[i : i + 2], start=[]) for i in range(0, len(cells), 2)]


def _show(entry: Mapping[str, Any], as_json: bool) -> None:
    """Print an image's classes as a table, and its fault on stderr; as_json: the fault alone."""
    if entry["fault"]:
        Terminal(stderr=True).say(f"{entry['image']}: {entry['fault']}")
    elif not as_json:
        _show_classes(Terminal(), entry)


def _show_classes(terminal: Terminal, entry: Mapping[str, Any]) -> None:
    heads = [head for head in _HEADS if head in entry["first"]]
    titles = [_HEADS[head] for head in heads] if len(heads) > 1 else ["probability"]
    columns = [Column(title, justify="right") for title in titles]
    table = Table(Column("class", min_width=24), *columns)
    for row in entry["classes"]:
        table.add_row(_name_class(row), *[f"{row[head]:.2%}" for head in heads])
    terminal.say(entry["image"])
    terminal.show(table)
    for note in _list_notes(entry):
        terminal.say(f"  {note}")


def _name_class(row: Mapping[str, Any]) -> str:
    return f"{row['name']} {row['meaning']}".strip()


def _list_notes(entry: Mapping[str, Any]) -> Iterator[str]:
    first = entry["first"]
    if first.get("cls") != first.get("dist"):
        yield f"the heads disagree: class head {first['cls']}, distillation head {first['dist']}"
    if entry["exif_orientation"] > 1:
        applied = "applied" if entry["exif_applied"] else "not applied (--exif-rotate applies it)"
        yield f"EXIF orientation {entry['exif_orientation']}: {applied}"
    if entry.get("attention"):
        yield f"attention maps: {entry['attention']}"


def _report(result: ResultFlags, loaded: LoadedModel, entries: Sequence[Mapping[str, Any]]) -> None:
    """Write the table, print the JSON value, and count the faults on stderr."""
    if result.output:
        write_table(result.output, [row for entry in entries for row in _list_rows(entry)])
    if result.json:
        about = {"checkpoint": loaded.source, "model": loaded.name, "weights": loaded.weights}
        print_json(Terminal(), {**about, "view": loaded.view._asdict(), "images": entries})
    faults = sum(bool(entry["fault"]) for entry in entries)
    if faults:
        Terminal(stderr=True).say(f"{faults} of {len(entries)} images could not be read")


def _list_rows(entry: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the rows of a table: one for each class, or one for the fault."""
    about = ("image", "exif_orientation", "exif_applied", "fault")
    empty = dict.fromkeys(("label", "name", "meaning", *_HEADS))
    for rank, row in enumerate(entry["classes"] or [empty], 1):
        yield {**{name: entry[name] for name in about}, "rank": rank, **empty, **row}
