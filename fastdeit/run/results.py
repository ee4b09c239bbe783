"""The results of a run: weights, picture, summary, and the message for a run that is finished."""

import contextlib
import dataclasses
import json

from fastdeit.checkpoint.files import read_json
from fastdeit.config.flags import format_train_command
from fastdeit.config.recipes.follow import follow_with_student, follow_without_teacher
from fastdeit.config.schema import Config
from fastdeit.data.build import build_train_loader
from fastdeit.data.loaders.batch import Batch
from fastdeit.data.quarantine import Quarantine
from fastdeit.display.console import RunConsole
from fastdeit.display.terminal import note_failure
from fastdeit.display.text import TITLE_LETTERS, quote_words, shorten
from fastdeit.distributed.environment import is_alone
from fastdeit.distributed.world import World
from fastdeit.kernels.mix import mix
from fastdeit.models.sizes import SIZES
from fastdeit.run.folder import write_on_rank0
from fastdeit.run.state import Run
from fastdeit.storage.atomic import atomic_open, atomic_write_text
from fastdeit.storage.jsonl import read_json_lines
from fastdeit.storage.run_folder import RunFolder

_MOST_PICTURES = 16


def write_results(run: Run, results: dict[str, float]) -> None:
    """Write summary.json and the picture; print the table. The weights are those of the last
    checkpoint.

    Raise FolderError. A picture that cannot be drawn is a note. A collective.
    """
    run.supervisor.beat("checkpoint", run.trainer.step)
    write_on_rank0(run, lambda: _write_files(run, results))
    if run.world.rank == 0:
        with note_failure(str(run.folder.report), run.console.note):
            _save_picture(run)
        show_summary(run.console, run.config, run.recipe, run.folder, results)


def _write_files(run: Run, results: dict[str, float]) -> None:
    for line in run.checkpoints.update_weights():  # the last evaluation may be the best
        run.console.note(line)
    summary = {"results": results, "steps": run.trainer.step, "skipped": run.trainer.state.skipped}
    # after the weights: a folder that holds it holds a finished run
    atomic_write_text(run.folder.summary, json.dumps(summary, indent=1))


def _save_picture(run: Run) -> None:
    from fastdeit.display.figures import save_report  # matplotlib imports slowly

    batch = _read_first_samples(run)
    images = mix(batch.unmixed, batch.lam, batch.box)
    titles = _title_samples(batch, run.data.train_index.classes)
    metrics = read_json_lines(run.folder.metrics)
    data = run.config.data
    with atomic_open(run.folder.report) as file:
        save_report(file, metrics, images, titles, data.mean, data.std)


def _read_first_samples(run: Run) -> Batch:
    """Return the first few samples of the run, read by this process alone."""
    data = run.data
    alone = dataclasses.replace(run.world, rank=0, size=1, local_size=1)
    count = min(_MOST_PICTURES, len(data.train_index) // 2 * 2)
    config = run.config.replace(optim={"batch_size": count, "micro_batch": 0})
    known = Quarantine.of(data.train_index, data.quarantine.rows.tolist(), policy="skip")
    loader = build_train_loader(config, alone, data.train_index, data.plan, quarantine=known)
    with contextlib.closing(loader):
        return next(loader.epoch(0))


def _title_samples(batch: Batch, classes: tuple[str, ...]) -> list[str]:
    """Return each sample's class, or both classes with their shares if it is mixed."""
    names = [shorten(classes[label], TITLE_LETTERS) for label in batch.labels.tolist()]
    titles = []
    for row, lam in enumerate(batch.lam.tolist()):
        partner = names[row ^ 1]
        mixed = f"{lam:.2f} {names[row]} + {1 - lam:.2f} {partner}"
        titles.append(names[row] if lam == 1 else mixed)
    return titles


def report_finished(config: Config, recipe: str, world: World, folder: RunFolder) -> None:
    """Print that the run was finished before, and its results. Raise ValueError for a damaged
    summary."""
    console = RunConsole(1, 1, enabled=world.rank == 0)
    console.note(
        f"{folder} holds this run, finished; to train again, remove it or change --output-dir"
    )
    results = read_json(folder.summary)["results"]
    show_summary(console, config, recipe, folder, results)


def show_summary(
    console: RunConsole, config: Config, recipe: str, folder: RunFolder, results: dict[str, float]
) -> None:
    """Print the table of a finished run, its files, and a command to try next."""
    files = {"weights (timm's names)": folder.weights(), "picture": folder.report}
    written = {name: path for name, path in files.items() if path.is_file()}
    console.summary(results, written, next_command(config, recipe, folder))


def next_command(config: Config, recipe: str, folder: RunFolder) -> str:
    """Return a command that is useful after this run: train with the teacher that it gave, compare
    with a run without distillation, or score its classes."""
    alone = config.distill.distillation_type == "none"
    if alone and config.model.model not in SIZES and not config.model.finetune:
        student = follow_with_student(config, recipe, str(folder))
        return format_train_command(*student, alone=is_alone())
    if recipe == "digits" and not alone:
        untaught = follow_without_teacher(config, recipe, str(folder))
        return format_train_command(untaught, recipe, alone=is_alone())
    return quote_words("fastdeit", "evaluate", folder)
