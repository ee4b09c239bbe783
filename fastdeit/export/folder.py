"""A folder for timm and the Hugging Face Hub: model.safetensors, config.json, README.md.

`timm.create_model("local-dir:FOLDER", pretrained=True)` loads it, and `hf-hub:OWNER/NAME` after
`huggingface_hub.upload_folder`. The folder of a DeiT has both heads; timm returns their mean in
evaluation, and both with `model.set_distilled_training(True)` in training.
"""

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import timm
from timm.data import resolve_model_data_config
from torch import nn

from fastdeit.config.parse import require
from fastdeit.export.build import build_origin
from fastdeit.export.card import write_card
from fastdeit.export.check import check_difference, measure_difference
from fastdeit.export.network import Precision, build_network
from fastdeit.export.record import Exported
from fastdeit.inference.load import LoadedModel
from fastdeit.models.hub import EvalView, describe_model, describe_weights
from fastdeit.models.sources import LOCAL
from fastdeit.storage.atomic import atomic_write_text, sync
from fastdeit.storage.run_folder import RunFolder
from fastdeit.storage.tensor_files import write_tensors

CARD = "README.md"


def export_folder(
    loaded: LoadedModel, path: Path, *, precision: Precision = "fp32", ema: bool = False
) -> Exported:
    """Write a model as a folder, after a check that timm loads it and computes the same.

    path: a folder that does not exist, or is empty; its name is that of the model card. precision:
    of the weights; timm computes in fp32 unless it is given a dtype. ema: whether the weights are
    the EMA, which the card names. Raises ValueError if the folder cannot be written, or timm
    computes something else; then nothing of it remains.
    """
    check_folder(path)
    origin = build_origin(loaded.source, ema, loaded.metadata.get("step", ""), loaded.view)
    try:
        with _atomic_folder(path) as work:
            _write_model(loaded, RunFolder(work), precision)
            card = write_card(loaded, Path(os.path.abspath(path)).name, precision, origin)
            atomic_write_text(work / CARD, card)
            model = timm.create_model(f"{LOCAL}{work}", pretrained=True).eval()
            _check_view(model, loaded.view)
            difference = measure_difference(model, loaded, "mean", precision)
            check_difference(difference, precision)
            size = sum(file.stat().st_size for file in work.iterdir())
    except OSError as error:
        require(False, "output", f"{path}: {error}", "a folder that can be written")
    return Exported(path, "folder", loaded.name, "mean", precision, size, difference)


def check_folder(path: Path) -> None:
    """Raise ValueError, before any work, unless a new folder can be written at a path."""
    is_free = not path.exists() or (path.is_dir() and not any(path.iterdir()))
    require(is_free, "output", str(path), "a new or empty folder, FILE.onnx or FILE.pt2")
    # safetensors, and so timm, opens no other
    is_text = str(path.absolute()).isprintable()
    require(is_text, "output", str(path), "a folder whose path has printable characters only")


def _write_model(loaded: LoadedModel, folder: RunFolder, precision: Precision) -> None:
    facts = (loaded.name, loaded.model, loaded.view, loaded.classes)
    state = build_network(loaded, "mean", precision).model.state_dict()
    write_tensors(folder.model, state, loaded.metadata | describe_weights(*facts))
    sync(folder.model)
    atomic_write_text(folder.model_config, json.dumps(describe_model(*facts), indent=1))


def _check_view(model: nn.Module, view: EvalView) -> None:
    """Raise ValueError unless timm shows a model the same images."""
    seen = resolve_model_data_config(model)
    found = EvalView(
        seen["input_size"][-1],
        tuple(seen["mean"]),
        tuple(seen["std"]),
        seen["crop_pct"],
        seen["interpolation"],
        seen["crop_mode"],
    )
    if found != view:
        raise ValueError(f"timm would show the model other images: {found}, not {view}")


@contextmanager
def _atomic_folder(path: Path) -> Iterator[Path]:
    """Create a folder that gets the name `path` when the block ends, or is removed."""
    path = Path(os.path.abspath(path))  # "." has no name
    work = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    work.mkdir()
    try:
        yield work
        os.replace(work, path)  # also over an empty folder
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    sync(path.parent)
