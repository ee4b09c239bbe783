"""The training of exported weights, from the run folder that has them."""

from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from fastdeit.config.changes import read_settings
from fastdeit.config.flags import format_train_command, list_flags
from fastdeit.config.parse import join_values
from fastdeit.config.recipes import RECIPES
from fastdeit.config.schema import Config
from fastdeit.models.build import find_eval_view
from fastdeit.models.hub import EvalView
from fastdeit.models.sources import LOCAL, find_run
from fastdeit.storage.jsonl import read_json_lines
from fastdeit.storage.run_folder import RunFolder

_PLACES = {
    "data": ("data_path", "train_split", "val_split"),
    "model": ("finetune",),
    "distill": ("cache",),
    "run": ("deepspeed_config",),
    "checkpoint": ("resume",),
}
"""Settings that may name a place, by section; --teacher-path may have several."""


@dataclass(frozen=True)
class Origin:
    """The training of weights.

    data_set: name of its folder; settings: the most important ones, by name; command: the one that
    repeats the run; of an absolute path in it only the last part is left, as a model card is
    public. scores: validation accuracy in percent of just these weights, by "HEAD/top1" and
    "HEAD/top5"; empty if they were not evaluated, or with another view.
    """

    data_set: str
    settings: dict[str, str]
    command: str
    scores: dict[str, float]


def build_origin(source: str, ema: bool, step: str, view: EvalView) -> Origin | None:
    """Return the training of weights; None if they are in no run folder.

    source: as in `load_model`; ema: whether they are the EMA; step: of their metadata, or ""; view:
    that of the export, as the scores of the run are those of its own view. Raises ValueError for
    settings that cannot be read.
    """
    folder = find_run(source)
    if folder is None:
        return None
    settings = read_settings(folder.config, str(folder))
    is_same = view == find_eval_view(settings)
    config = _hide_places(settings)
    recipe = min(RECIPES, key=lambda name: len(list_flags(config, name)))
    config = config.replace(run={"output_dir": f"runs/{recipe}"})
    file = Path(source)
    is_ema = ema or (file.is_file() and "ema" in file.stem.split("_"))
    weights = {"Weights": "EMA" if is_ema else "model"} | ({"Steps": step} if step else {})
    return Origin(
        data_set=Path(config.data.data_path).name,
        settings=_name_settings(config, recipe, folder) | weights,
        command=format_train_command(config, recipe, alone=False),
        scores=_read_scores(folder, "ema" if is_ema else "model", step) if is_same else {},
    )


def _hide_places(config: Config) -> Config:
    values = config.to_dict()
    hidden = {
        section: {name: _hide_place(values[section][name]) for name in names}
        for section, names in _PLACES.items()
    }
    hidden["distill"]["teacher_path"] = _hide_teachers(config)
    return config.replace(**hidden)


def _hide_place(place: str) -> str:
    """Return a source; of an absolute path only its last part."""
    prefix = LOCAL if place.startswith(LOCAL) else ""
    path = Path(place.removeprefix(prefix))
    return prefix + path.name if path.is_absolute() else place


def _hide_teachers(config: Config) -> str:
    if not config.distill.teacher_path:
        return ""
    places = [_hide_place(path) for _, path in config.distill.teachers]
    return join_values(places) if len(places) > 1 else places[0]


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
