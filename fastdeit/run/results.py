"""The results of a run: weights, summary, report, and the message for a run that is finished."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastdeit.checkpoint.files import read_json
from fastdeit.config.flags import format_train_command
from fastdeit.config.recipes.follow import follow_with_student, follow_without_teacher
from fastdeit.config.schema import Config
from fastdeit.data.formats.file_names import EXTENSIONS
from fastdeit.display.console import RunConsole
from fastdeit.display.progress import format_duration
from fastdeit.display.text import quote_words
from fastdeit.distributed.environment import is_alone
from fastdeit.distributed.world import World
from fastdeit.models.sizes import SIZES
from fastdeit.run.folder import write_on_rank0
from fastdeit.run.state import Run
from fastdeit.storage.atomic import atomic_write_text
from fastdeit.storage.attempts import read_attempts
from fastdeit.storage.jsonl import read_json_lines
from fastdeit.storage.run_folder import RunFolder
from fastdeit.tracking.log import find_seconds


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
    """Print the table of a finished run, its length and best epoch, its files, and commands to try
    next."""
    facts = describe_training(folder, config.optim.epochs)
    files = {
        "weights": folder.weights(),
        "their EMA": folder.weights(ema=True),
        "weights of the best epoch": folder.model_best,
        "their EMA at the best epoch": folder.model_ema_best,
        "report": folder.report,
    }
    facts |= {name: str(path) for name, path in files.items() if path.is_file()}
    console.summary(results, facts, list_next_commands(config, recipe, folder))


def describe_training(folder: RunFolder, epochs: int) -> dict[str, str]:
    """Return the time that all starts of a run took, and its best epoch, as far as its log has
    them."""
    lines = read_json_lines(folder.metrics)
    facts = {}
    if seconds := max(map(find_seconds, lines), default=0.0):
        starts = len(read_attempts(folder))
        facts["time"] = format_duration(seconds) + (f" in {starts} starts" if starts > 1 else "")
    scored = [(score, line) for line in lines if (score := _find_score(line)) is not None]
    if scored:
        (model, top1), line = max(scored, key=lambda pair: (pair[0][1], pair[1]["step"]))
        number = f"{line['epoch']:g} of {epochs}" if "epoch" in line else f"step {line['step']}"
        facts["best epoch"] = f"{number}, validation top-1 {top1:.2f} % ({model})"
    return facts


def _find_score(line: Mapping[str, Any]) -> tuple[str, float] | None:
    """Return the score in a line of an evaluation that decides the best checkpoint, with the name
    of the model that has it; None for another line."""
    for name, title in (("ema", "EMA"), ("model", "model")):
        score = line.get(f"{name}/both/top1")
        if isinstance(score, int | float):
            return title, float(score)
    return None


def list_next_commands(config: Config, recipe: str, folder: RunFolder) -> list[str]:
    """Return commands that are useful after this run: train with the teacher that it gave, or
    compare with a run without distillation; score its classes, name the class of an image, export
    its weights."""
    commands = [quote_words("fastdeit", "evaluate", folder)]
    if image := _find_image(config):
        commands.append(quote_words("fastdeit", "predict", image, "--checkpoint", folder))
    output = folder.path / "export"
    if not output.exists():
        commands.append(quote_words("fastdeit", "export", folder, "--output", output))
    following = _follow(config, recipe, folder)
    return [*([following] if following else []), *commands]


def _follow(config: Config, recipe: str, folder: RunFolder) -> str:
    """Return the command of the run that usually comes after this one; "" if there is none."""
    alone = config.distill.distillation_type == "none"
    if alone and config.model.model not in SIZES and not config.model.finetune:
        student = follow_with_student(config, recipe, str(folder))
        return format_train_command(*student, alone=is_alone())
    if recipe == "digits" and not alone:
        untaught = follow_without_teacher(config, recipe, str(folder))
        return format_train_command(untaught, recipe, alone=is_alone())
    return ""


def _find_image(config: Config) -> str:
    """Return a validation image, if the data set has class folders; else ""."""
    root = Path(config.data.data_path) / config.data.val_split
    for folder, folders, files in os.walk(root):
        folders.sort()
        images = sorted(name for name in files if name.lower().endswith(EXTENSIONS))
        if images:
            return os.path.join(folder, images[0])
    return ""


def resume_command(config: Config, recipe: str) -> str:
    """Return the command that resumes a run, to its end."""
    onward = config.replace(run={"stop_after_steps": 0})
    return format_train_command(onward, recipe, alone=is_alone())
