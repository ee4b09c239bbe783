"""`fastdeit analyse CHECKPOINT`: compare its tokens, attention heads and answers.

CHECKPOINT is a run folder, a file, local-dir:FOLDER, hf-hub:NAME, https://..., or a timm model; for
a run of fastdeit, --data-path, --val-split and the teacher are those of the run, and its recorded
answers for all validation images are compared.

Exit codes: 0; 2 for a command line, weights or a data set that cannot be used.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.table import Column, Table

from fastdeit.analysis.disagreement import Disagreement, compare_answers
from fastdeit.analysis.trace import TokenAnalysis
from fastdeit.commands.errors import one_line_errors
from fastdeit.commands.flags import Checkpoint, WeightsFlags
from fastdeit.commands.models.evaluate import DataFlags, find_data
from fastdeit.commands.output import print_json
from fastdeit.config.options import parse_options
from fastdeit.config.parse import Section, runs_code
from fastdeit.config.schema import Config
from fastdeit.data.build import fetch_data, find_root
from fastdeit.display.terminal import Terminal
from fastdeit.inference.analyse import IMAGES, Analysis, analyse_model, open_images
from fastdeit.inference.evaluate import TeacherOptions, load_teacher_of
from fastdeit.inference.load import LoadedModel, load_model
from fastdeit.models.sources import LOCAL, find_run, locate_weights
from fastdeit.models.teachers.ensemble import LiveTeacher
from fastdeit.report.predictions import read_predictions
from fastdeit.storage.run_folder import RunFolder

_PAPER = "in the paper (DeiT-B): 0.06 learned, 0.93 after the last layer"


@dataclass(frozen=True)
class AnswerFlags(Section):
    """The images and the answers."""

    images: int = IMAGES
    """Images that show tokens and attention, spread evenly over the split; 0: all."""
    class_map: str = ""
    """How the data set's classes match the model's outputs, as in `fastdeit evaluate`."""
    other: str = ""
    """A second checkpoint, whose answers are compared, too."""
    json: bool = False
    """Print one JSON value in place of tables."""

    def check(self) -> None:
        self._require_each(["images"], 0)


@dataclass(frozen=True)
class AnalyseOptions:
    """The flags of `fastdeit analyse`."""

    checkpoint: Checkpoint
    data: DataFlags = field(default_factory=DataFlags)
    weights: WeightsFlags = field(default_factory=WeightsFlags)
    teacher: TeacherOptions = field(default_factory=TeacherOptions)
    answers: AnswerFlags = field(default_factory=AnswerFlags)


def analyse_command(argv: Sequence[str]) -> int:
    """Run `fastdeit analyse`; return 0.

    Exit with code 2 for a command line, weights or a data set that cannot be used.
    """
    with one_line_errors():
        options = parse_options(argv, AnalyseOptions, "fastdeit analyse", __doc__ or "")
        config = find_data(options.checkpoint, options.data)
        fetch_data(config)
        run = _find_whole_run(options.checkpoint)
        recorded = _read_recorded(run) if run is not None and _asks_recorded(options) else None
        models = _load_models(options, run if recorded is None else None)
        first = next(iter(models.values()))
        class_map = options.answers.class_map
        done = analyse_model(
            models,
            open_images(first, find_root(config), config.data.val_split, class_map),
            options.answers.images,
            teacher=_load_teacher(options, config, first) if recorded is None else None,
            class_map=class_map,
            recorded=recorded,
        )
    if options.answers.json:
        print_json(Terminal(), done.describe())
    else:
        _show(Terminal(), done)
    return 0


def _find_whole_run(checkpoint: str) -> RunFolder | None:
    """Return the run if CHECKPOINT is its folder, not a file in it; else None."""
    run = find_run(checkpoint)
    is_whole = run is not None and run.path == Path(checkpoint.removeprefix(LOCAL)).resolve()
    return run if is_whole else None


def _asks_recorded(options: AnalyseOptions) -> bool:
    """Return True if the run's own evaluation has all requested answers."""
    is_own = options.data == DataFlags() and options.teacher == TeacherOptions()
    return is_own and not options.answers.other


def _read_recorded(run: RunFolder) -> tuple[Disagreement, str] | None:
    """Return the disagreement in the newest evaluation of a run, and a text on its origin; None if
    the run has recorded none, or, with a note, if the file is damaged."""
    try:
        found = read_predictions(run.predictions)
    except ValueError as error:
        Terminal(stderr=True).say(f"note: {error}")
        return None
    if found is None:
        return None
    where = f"of all {len(found.rows):,} images, recorded at step {found.step:,}"
    return compare_answers(found.labels, found.answers), where


def _load_models(options: AnalyseOptions, run: RunFolder | None) -> dict[str, LoadedModel]:
    """Return the models, by the names of their answers; run: the run whose EMA is added, or
    None."""
    weights = options.weights
    device = weights.find_device()
    name = "ema" if weights.ema else "model"
    source = options.checkpoint
    models = {name: load_model(source, ema=weights.ema, model=weights.model, device=device)}
    if run is not None and not weights.ema and run.weights(ema=True).is_file():
        models["ema"] = load_model(source, ema=True, model=weights.model, device=device)
    if options.answers.other:
        models["other"] = load_model(options.answers.other, device=device)
    return models


def _load_teacher(
    options: AnalyseOptions, config: Config, first: LoadedModel
) -> LiveTeacher | None:
    """Load the teacher of the flags, else that of the run if its weights are on this machine."""
    device = options.weights.find_device()
    if options.teacher != TeacherOptions():
        return load_teacher_of(options.teacher, first, device)
    distill = config.distill
    is_own = not options.data.data_path and distill.needs_teacher
    # a program runs only if the command line names it
    if not is_own or runs_code(distill.teacher_model):
        return None
    if not all(path and locate_weights(path).is_file() for _, path in distill.teachers):
        return None
    named = TeacherOptions(distill.teacher_model, distill.teacher_path)
    return load_teacher_of(named, first, device, distill.teacher_view)


def _show(terminal: Terminal, done: Analysis) -> None:
    facts = {
        "checkpoint": f"{done.loaded.source}  ({done.loaded.name})",
        "data": f"{done.index.root}, {done.index.split}: {done.images:,} of {len(done.index):,}",
    }
    for name, text in facts.items():
        terminal.say(text, label=f"{name:<10}  ")
    _show_layers(terminal, done.found)
    if done.disagreement is None:
        terminal.say(f"no disagreement: {done.source}")
    else:
        terminal.show(_tabulate(done.disagreement, done.source))
    for note in done.found.notes:
        terminal.say(note)


def _show_layers(terminal: Terminal, found: TokenAnalysis) -> None:
    """Print cosines and distances by place in the network."""
    titles = ("cosine of both tokens", "deviation", "attention distance, px", "nearest to farthest")
    table = Table("place", *(Column(title, justify="right") for title in titles))
    tokens = found.tokens
    cosines = {layer.name: layer for layer in tokens.layers} if tokens else {}
    distances = found.distance.layers if found.distance else ()
    by_layer = {f"layer {number}": heads for number, heads in enumerate(distances, 1)}
    if tokens:
        table.add_row("learned", f"{tokens.learned:.3f}", "", "", "")
    for name in cosines or by_layer:
        cosine, heads = cosines.get(name), by_layer.get(name)
        table.add_row(
            name,
            f"{cosine.mean:.3f}" if cosine else "",
            f"{cosine.std:.3f}" if cosine else "",
            f"{sum(heads) / len(heads):.1f}" if heads else "",
            f"{min(heads):.1f} to {max(heads):.1f}" if heads else "",
        )
    if table.rows:
        terminal.show(table)
    if tokens:
        terminal.say(f"cosines {_PAPER}")
    if tokens and tokens.heads:
        weights = tokens.heads
        mean = f"{weights.mean:.3f}, deviation {weights.std:.3f}"
        terminal.say(f"cosine of the weights of both heads: {mean}")
    if found.distance:
        terminal.say(f"a head that reads all patches alike: {found.distance.uniform:.1f} px")


def _tabulate(found: Disagreement, source: str) -> Table:
    """Return a table whose columns have the numbers of the rows, so that it fits into a
    terminal."""
    title = f"disagreement in percent, {source}"
    names = [f"{number} {name}" for number, name in enumerate(found.names, 1)]
    columns = [Column(str(number), justify="right") for number in range(1, len(names) + 1)]
    table = Table("", *columns, title=title, title_justify="left")
    for name, row in zip(names, found.percent, strict=True):
        table.add_row(name, *(f"{value:.2f}" for value in row))
    return table
