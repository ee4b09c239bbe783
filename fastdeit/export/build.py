"""The training of exported weights, from the run folder that has them."""

from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from fastdeit.config.changes import read_settings
from fastdeit.config.flags import format_train_command, list_flags
from fastdeit.config.recipes import RECIPES
from fastdeit.config.schema import Config
from fastdeit.models.sources import LOCAL
from fastdeit.storage.jsonl import read_json_lines
from fastdeit.storage.run_folder import RunFolder

_PLACES = {
    "data": ("data_path",),
    "model": ("finetune",),
    "distill": ("teacher_path", "cache"),
    "run": ("deepspeed_config",),
}
"""Settings that name places, by section."""


@dataclass(frozen=True)
class Origin:
    """How weights were trained.

    data_set: name of its folder; settings: what decides most, by name; command: what repeats the
    run; an absolute path in it is its last part, as a model card is public. scores: validation
    accuracy in percent of just these weights, by "HEAD/top1" and "HEAD/top5"; empty if they were
    not evaluated.
    """

    data_set: str
    settings: dict[str, str]
    command: str
    scores: dict[str, float]


def build_origin(source: str, ema: bool, step: str) -> Origin | None:
    """Return the training of weights; None if they are in no run folder.

    source: as in `load_model`; ema: whether they are the EMA; step: of their metadata, or "".
    Raises ValueError for settings that cannot be read.
    """
    folder = find_run(source)
    if folder is None:
        return None
    config = _hide_places(read_settings(folder.config, str(folder)))
    recipe = min(RECIPES, key=lambda name: len(list_flags(config, name)))
    config = config.replace(run={"output_dir": f"runs/{recipe}"})
    file = Path(source)
    is_ema = ema or (file.is_file() and "ema" in file.stem.split("_"))
    weights = {"Weights": "EMA" if is_ema else "model"} | ({"Steps": step} if step else {})
    return Origin(
        data_set=Path(config.data.data_path).name,
        settings=_name_settings(config, recipe, folder) | weights,
        command=format_train_command(config, recipe, alone=False),
        scores=_read_scores(folder, "ema" if is_ema else "model", step),
    )


def find_run(source: str) -> RunFolder | None:
    """Return the run folder that a source is, or that has the file or the checkpoint."""
    path = Path(source.removeprefix(LOCAL)).absolute()
    folders = map(RunFolder, (path, *path.parents[:3]))
    return next((folder for folder in folders if folder.config.is_file()), None)


def _hide_places(config: Config) -> Config:
    values = config.to_dict()
    return config.replace(
        **{
            section: {name: _hide_place(values[section][name]) for name in names}
            for section, names in _PLACES.items()
        }
    )


def _hide_place(places: str) -> str:
    """Return one or several paths, with an absolute one as its last part."""
    parts = places.split(",")
    return ",".join(Path(part).name if Path(part).is_absolute() else part for part in parts)


def _name_settings(config: Config, recipe: str, folder: RunFolder) -> dict[str, str]:
    distill = config.distill
    teacher = distill.teacher_model or Path(distill.teacher_path or distill.cache).name
    is_taught = distill.distillation_type != "none"
    rows = {
        "Recipe": recipe,
        "Teacher": f"{teacher}, {distill.distillation_type} labels" if is_taught else "none",
        "Epochs": f"{config.optim.epochs:g}",
        "Batch size": f"{config.optim.batch_size:,}",
    }
    if folder.train_images.is_file():
        rows["Training images"] = f"{pq.read_metadata(folder.train_images).num_rows:,}"
    return rows


def _read_scores(folder: RunFolder, model: str, step: str) -> dict[str, float]:
    """Return the accuracies that the log of a run has of its model or EMA at a step."""
    prefix = f"{model}/"
    scores: dict[str, float] = {}
    for line in read_json_lines(folder.metrics):
        if str(line.get("step")) == step:
            scores |= {
                name.removeprefix(prefix): float(value)
                for name, value in line.items()
                if name.startswith(prefix) and name.endswith(("top1", "top5"))
            }
    return scores
