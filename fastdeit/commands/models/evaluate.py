"""`fastdeit evaluate CHECKPOINT --data-path DATA`: score a checkpoint on a data set.

CHECKPOINT is a run folder, a file, local-dir:FOLDER, hf-hub:NAME, https://..., or a timm model; for
a run of fastdeit, --data-path and --val-split are those of the run. On all GPUs of the machine:
deepspeed --module fastdeit evaluate CHECKPOINT ... (its launcher prints on stdout, too; with --json
add -q before --module).

Exit codes: 0; 2 for a command line, weights or a data set that cannot be used. Damaged images are
reported, and the others scored.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from rich.table import Column, Table

from fastdeit.commands.errors import one_line_errors
from fastdeit.commands.flags import Checkpoint, WeightsFlags
from fastdeit.commands.output import Rows, check_table, print_json, write_table
from fastdeit.config.changes import find_paths, read_settings
from fastdeit.config.options import parse_options
from fastdeit.config.parse import Section, require
from fastdeit.config.schema import Config
from fastdeit.data.build import fetch_data, find_root
from fastdeit.display.console import score_table
from fastdeit.display.terminal import Terminal
from fastdeit.display.text import shorten
from fastdeit.distributed.environment import is_alone
from fastdeit.distributed.place import find_world, on_first_rank
from fastdeit.distributed.world import World, init_distributed
from fastdeit.inference.class_names import name_classes
from fastdeit.inference.evaluate import (
    EvalOptions,
    LabelOptions,
    ReadOptions,
    TeacherOptions,
    evaluate_model,
    find_dtype,
)
from fastdeit.inference.evaluation import Evaluation
from fastdeit.inference.load import LoadedModel, load_model
from fastdeit.inference.views import ViewOptions, change_view
from fastdeit.models.sources import find_run
from fastdeit.storage.urls import is_url

_SHOWN = 10
"""The largest number of classes, confusions and damaged images that are printed."""
_LETTERS = 36  # of a class in a table


@dataclass(frozen=True)
class DataFlags(Section):
    """The images."""

    data_path: str = ""
    """A data set in any format of docs/data.md, or its URL; empty: that of the run."""
    val_split: str = ""
    """A name, a list, or a pattern of shards; empty: that of the run, else val."""


@dataclass(frozen=True)
class ResultFlags(Section):
    """The results to print and write."""

    json: bool = False
    """Print one JSON value in place of tables."""
    output: str = ""
    """Also write a row for each class, FILE.csv or FILE.json."""
    predictions: str = ""
    """Also write a row for each image, FILE.csv or FILE.json."""

    def check(self) -> None:
        for name in ("output", "predictions"):
            if getattr(self, name):
                check_table(getattr(self, name), name)


@dataclass(frozen=True)
class EvaluateOptions:
    """The flags of `fastdeit evaluate`."""

    checkpoint: Checkpoint
    data: DataFlags = field(default_factory=DataFlags)
    weights: WeightsFlags = field(default_factory=WeightsFlags)
    view: ViewOptions = field(default_factory=ViewOptions)
    labels: LabelOptions = field(default_factory=LabelOptions)
    reading: ReadOptions = field(default_factory=ReadOptions)
    teacher: TeacherOptions = field(default_factory=TeacherOptions)
    result: ResultFlags = field(default_factory=ResultFlags)
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """auto: bf16 on a GPU, fp32 on a CPU."""


def evaluate_command(argv: Sequence[str]) -> int:
    """Run `fastdeit evaluate`; return 0.

    Exit with code 2 for a command line, weights or a data set that cannot be used.
    """
    with one_line_errors():
        options = parse_options(argv, EvaluateOptions, "fastdeit evaluate", __doc__ or "")
        config = find_data(options.checkpoint, options.data)
        if not is_alone():
            init_distributed()
        world = find_world(options.weights.find_device())
        fetch_data(config)
        root = find_root(config)
        done = evaluate_model(
            _load(options, world),
            root,
            config.data.val_split,
            EvalOptions(options.labels, options.reading, options.teacher),
            world=world,
            ema=options.weights.ema,
        )
        if world.rank == 0:
            _report(done, options.result)
    return 0


def find_data(checkpoint: str, data: DataFlags) -> Config:
    """Return settings that name the data set and its val_split: those of the flags, else those of
    the run whose folder has the checkpoint. Raises ValueError if neither names a data set, or that
    of the run is not on this machine."""
    split = {"val_split": data.val_split} if data.val_split else {}
    if data.data_path:
        return Config().replace(data={"data_path": data.data_path, **split})
    run = find_run(checkpoint)
    allowed = f"the folder of a data set (docs/data.md), as {checkpoint} is no run folder"
    require(run is not None, "data_path", data.data_path, allowed)
    assert run is not None
    recorded = read_settings(run.config, "CHECKPOINT")
    config = find_paths(recorded, recorded.replace(run={"output_dir": str(run)}))
    place = config.data.data_path
    is_here = config.data.data_set == "digits" or is_url(place) or os.path.isdir(place)
    allowed = "the folder of the data set on this machine; that of the run is not here"
    require(is_here, "data_path", place, allowed)
    return config.replace(data=split)


def _load(options: EvaluateOptions, world: World) -> LoadedModel:
    weights = options.weights
    loaded = on_first_rank(
        world,
        lambda: load_model(
            options.checkpoint,
            ema=weights.ema,
            model=weights.model,
            device=world.device,
            dtype=find_dtype(options.precision, world),
        ),
    )
    return change_view(loaded, options.view.apply(loaded.view))


def _report(done: Evaluation, result: ResultFlags) -> None:
    """Print the scores, then write the files, so that a failed write loses no score."""
    if result.json:
        print_json(Terminal(), done.describe())
    else:
        _show(Terminal(), done)
    notes = Terminal(stderr=result.json)
    if result.output:
        _write(notes, result.output, done.list_classes(), "output")
    if result.predictions:
        _write(notes, result.predictions, done.list_images(), "predictions")


def _write(terminal: Terminal, path: str, rows: Rows, flag: str) -> None:
    write_table(path, rows, flag)
    terminal.say(f"{path}: {len(rows):,} rows")


def _show(terminal: Terminal, done: Evaluation) -> None:
    view = done.loaded.view
    count = len(done.predictions.rows)
    facts = {
        "checkpoint": f"{done.loaded.source}  ({done.loaded.name})",
        "data": f"{done.index.root}, {done.index.split}: {count:,} images",
        "classes": f"{len(set(done.classes.labels)):,}, {done.classes.description}",
        "view": f"{view.size} px, {view.interpolation}, crop {view.crop_mode} {view.crop_pct:g}",
        "speed": f"{count / done.seconds:,.0f} images/s",
    }
    for name, text in facts.items():
        terminal.say(text, label=f"{name:<10}  ")
    terminal.show(score_table(done.results))
    for name, value in done.results.items():
        if name.endswith("/heads_agreement"):
            terminal.say(f"both heads give the same class for {value:.2f} % of the images")
    _show_classes(terminal, done)
    _show_confusions(terminal, done)
    if done.damaged:
        terminal.say(f"{len(done.damaged):,} damaged images are not scored:")
        terminal.say("\n".join(f"  {line}" for line in done.damaged[:_SHOWN]))


def _show_classes(terminal: Terminal, done: Evaluation) -> None:
    """Print the classes with the lowest top-1."""
    rows = sorted(done.list_classes(), key=lambda row: row["both_top1"])
    few = f"the {_SHOWN} lowest of {len(rows):,}; all: --output FILE.csv"
    title = "classes" if len(rows) <= _SHOWN else few
    table = _make_table(title, "images", "top-1 %", "top-5 %", "confused with")
    titles = _name_rows(done)
    for row in rows[:_SHOWN]:
        other = row["confused_with"]
        worst = f"{titles[other]} ({row['confused_images']})" if row["confused_images"] else ""
        scores = [f"{row[f'both_{name}']:.2f}" for name in ("top1", "top5")]
        table.add_row(titles[row["class"]], f"{row['images']:,}", *scores, worst)
    terminal.show(table)


def _show_confusions(terminal: Terminal, done: Evaluation) -> None:
    rows = done.list_confusions()[:_SHOWN]
    if rows:
        table = _make_table("worst confusions: class", "predicted", "images")
        titles = _name_rows(done)
        for row in rows:
            table.add_row(titles[row["class"]], titles[row["predicted"]], f"{row['images']:,}")
        terminal.show(table)


def _name_rows(done: Evaluation) -> dict[str, str]:
    """Return the text of each class in a table: its name, and the meaning of an ImageNet code."""
    names = done.classes.names
    return {
        entry.name: shorten(f"{entry.name} {entry.meaning}".rstrip(), _LETTERS)
        for entry in name_classes(names, len(names))
    }


def _make_table(first: str, *others: str) -> Table:
    numbers = {"images", "top-1 %", "top-5 %"}
    right: dict[str, Any] = {"justify": "right"}
    return Table(first, *(Column(name, **(right if name in numbers else {})) for name in others))
