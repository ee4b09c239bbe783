"""What a person is told when a run has ended, or had ended before."""

import json

from fastdeit.config.schema import Config
from fastdeit.display.console import RunConsole
from fastdeit.distributed.world import World
from fastdeit.models.student import SIZES
from fastdeit.storage.run_folder import RunFolder


def is_finished(folder: RunFolder) -> bool:
    """Return True if the run has ended: its summary is the last file that it writes."""
    return folder.summary.is_file()


def say_finished(config: Config, recipe: str, world: World, folder: RunFolder) -> None:
    """Tells that a run was finished before, and how it ended."""
    console = RunConsole(1, 1, enabled=world.rank == 0)
    console.note(
        f"{folder} holds this run, finished; remove it or name another --output-dir to train again"
    )
    show_summary(console, config, recipe, folder, json.loads(folder.summary.read_text())["results"])


def show_summary(
    console: RunConsole, config: Config, recipe: str, folder: RunFolder, results: dict[str, float]
) -> None:
    """The table of a finished run, its files, and the command to try next."""
    files = {
        "weights (timm's names)": folder.student,
        "picture": folder.report,
    }
    console.summary(results, files, _next_command(config, recipe, folder))


def _next_command(config: Config, recipe: str, folder: RunFolder) -> str:
    if recipe.endswith("_teacher"):
        return f"deepspeed fastdeit/train.py --recipe {recipe.removesuffix('_teacher')}"
    if recipe == "digits":
        return "deepspeed fastdeit/train.py --recipe digits --distillation-type none --output-dir runs/digits_alone"
    if config.distill.distillation_type == "none" and config.model.model not in SIZES:
        weights = folder.student
        return (
            f"deepspeed fastdeit/train.py --data-path {config.data.data_path} "
            f"--teacher-model {config.model.model} --teacher-path {weights}"
        )
    return f"tensorboard --logdir {folder.tensorboard}"
