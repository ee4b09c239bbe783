"""The results of a run: weights, summary, report, and the message for a run that is finished."""

import json

from fastdeit.checkpoint.files import read_json
from fastdeit.config.flags import format_train_command
from fastdeit.config.recipes.follow import follow_with_student, follow_without_teacher
from fastdeit.config.schema import Config
from fastdeit.display.console import RunConsole
from fastdeit.display.text import quote_words
from fastdeit.distributed.environment import is_alone
from fastdeit.distributed.world import World
from fastdeit.models.sizes import SIZES
from fastdeit.run.folder import write_on_rank0
from fastdeit.run.state import Run
from fastdeit.storage.atomic import atomic_write_text
from fastdeit.storage.run_folder import RunFolder


def write_results(run: Run, results: dict[str, float]) -> None:
    """Write summary.json and the report; print the table. The weights are those of the last
    checkpoint.

    Raise FolderError. A report that cannot be written is a note. A collective.
    """
    run.supervisor.beat("checkpoint", run.trainer.step)
    write_on_rank0(run, lambda: _write_files(run, results))
    run.report.finish()
    if run.world.rank == 0:
        show_summary(run.console, run.config, run.recipe, run.folder, results)


def _write_files(run: Run, results: dict[str, float]) -> None:
    for line in run.checkpoints.update_weights():  # the last evaluation may be the best
        run.console.note(line)
    summary = {"results": results, "steps": run.trainer.step, "skipped": run.trainer.state.skipped}
    # after the weights: a folder that holds it holds a finished run
    atomic_write_text(run.folder.summary, json.dumps(summary, indent=1))


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
    files = {"weights (timm's names)": folder.weights(), "report": folder.report}
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
