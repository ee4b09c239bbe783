"""Any checkpoint as a model ready for inference, with its preprocessing and its classes."""

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from timm.models import is_model_in_modules
from torch import nn

from fastdeit.models.hub import EvalView, read_class_names
from fastdeit.models.network import (
    WeightFile,
    build_network,
    find_architecture,
    known_config,
    read_weight_file,
)
from fastdeit.models.sizes import StateDict
from fastdeit.models.sources import fetch_weights
from fastdeit.storage.json_values import parse_json
from fastdeit.storage.tensor_files import hash_tensors

_VIEW_FIELDS = ("mean", "std", "input_size", "crop_pct", "interpolation", "crop_mode")
"""The fields of a view in the metadata of our files."""

Transform = Callable[[Image.Image], torch.Tensor]
"""A function from a PIL image in RGB to a model's input, fp32 (3, S, S), normalised."""


@functools.lru_cache
def build_transform(view: EvalView) -> Transform:
    """Return timm's transform of a view: a PIL image in RGB → fp32 (3, S, S), normalised.

    Equal to the evaluation's pixels of the `exact` backend.
    """
    transform: Transform = create_transform(
        input_size=(3, view.size, view.size),
        interpolation=view.interpolation,
        mean=view.mean,
        std=view.std,
        crop_pct=view.crop_pct,
        crop_mode=view.crop_mode,
    )
    return transform


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode on its device, and what belongs to it.

    model: our `Student` for the weights of a DeiT, else timm's model. name: timm's, of the
    architecture. classes: names in the order of the outputs; None if nothing names them. source:
    the name by which it was loaded. weights: `hash_tensors` of the file's state dict. metadata: of
    the safetensors file.
    """

    model: nn.Module
    name: str
    view: EvalView
    classes: tuple[str, ...] | None
    source: str
    weights: str
    metadata: dict[str, str]

    @property
    def transform(self) -> Transform:
        """Return the function from a PIL image in RGB to the model's input, fp32 (3, S, S)."""
        return build_transform(self.view)


def load_model(
    source: str | Path,
    *,
    ema: bool = False,
    model: str = "",
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> LoadedModel:
    """Load a model for inference from whatever names its weights.

    source: as in `fetch_weights`: a run folder, a checkpoint, a file of ours, of timm or of deit,
    `local-dir:FOLDER`, `hf-hub:OWNER/NAME`, `https://...`, or a timm model. ema: the EMA of the
    weights. model: the architecture, by timm's name, where the file does not have it. Raises
    ValueError with one line: no file, no architecture, weights that do not fit.
    """
    path = fetch_weights(source, ema=ema)
    file = read_weight_file(path, ema=ema)
    name = model or find_architecture(source, file)
    view = _find_view(name, file)
    try:
        network = build_network(name, file, size=view.size)
    except ValueError as error:
        if file.architecture in ("", name):
            raise
        raise ValueError(f"{error}; the file has the weights of {file.architecture}") from error
    return LoadedModel(
        model=network.eval().to(device, dtype),
        name=name,
        view=view,
        classes=read_class_names(path, file.metadata),
        source=str(source),
        weights=hash_tensors(file.state),
        metadata=dict(file.metadata),
    )


def _find_view(name: str, file: WeightFile) -> EvalView:
    """Return the preprocessing: of config.json, else of the file's metadata, else timm's."""
    named = _find_named_view(file)
    known = known_config(name).to_dict()
    if "input_size" not in named:
        side = _infer_side(name, known["input_size"][-1], file.state)
        named |= {"input_size": (3, side, side)} if side else {}
    if named:
        # a size for tests belongs to timm's weights alone
        known = {field: value for field, value in known.items() if not field.startswith("test_")}
    return _make_view(known | named, file.path)


def _make_view(described: Mapping[str, Any], path: Path) -> EvalView:
    """Return the view of a pretrained_cfg. Raises ValueError for one that no model has."""
    try:
        found = resolve_data_config(pretrained_cfg=described, use_test_size=True)
        height, width = (int(side) for side in found["input_size"][1:])
        view = EvalView(
            size=height,
            mean=tuple(map(float, found["mean"])),
            std=tuple(map(float, found["std"])),
            crop_pct=float(found["crop_pct"]),
            interpolation=str(found["interpolation"]),
            crop_mode=str(found["crop_mode"]),
        )
    except (TypeError, ValueError, KeyError, IndexError):
        height, width, view = 0, 0, None
    ok = view is not None and 0 < height == width and len(view.mean) == len(view.std) == 3
    if view is None or not ok or min(*view.std, view.crop_pct) <= 0:
        rule = "input_size [3, S, S], mean and std of three numbers, crop_pct above 0"
        raise ValueError(f"{path}: describes no preprocessing that works here: {rule}")
    return view


def _infer_side(name: str, known_side: int, state: StateDict) -> int:
    """Return the side of the images that a Vision Transformer's position embedding was trained for;
    0 if it has none, or it is that for known_side, which timm's model takes."""
    positions, kernel = state.get("pos_embed"), state.get("patch_embed.proj.weight")
    is_vit = is_model_in_modules(name.partition(".")[0], ("deit", "vision_transformer"))
    if not is_vit or positions is None or kernel is None or kernel.shape[1] != 3:
        return 0
    patch = int(kernel.shape[-1])
    for special in (1, 2, 0):  # a class token, a distillation token, too, or neither
        grid = math.isqrt(positions.shape[1] - special)
        if grid**2 + special == positions.shape[1]:
            return grid * patch if grid != known_side // patch else 0
    return 0


def _find_named_view(file: WeightFile) -> dict[str, Any]:
    """Return the preprocessing that config.json names, or the metadata of our own files; {} if
    neither does."""
    described = file.config.get("pretrained_cfg")
    if isinstance(described, Mapping):
        # a model that was built for another size takes only that size
        side = file.arguments.get("img_size")
        sides = side if isinstance(side, list) else [side, side]
        return {**described, **({"input_size": [3, *sides]} if side else {})}
    named = {
        field: parse_json(file.metadata[field], f"{file.path}: {field}")
        for field in _VIEW_FIELDS
        if field in file.metadata
    }
    if "input_size" in named:
        named["input_size"] = (3, named["input_size"], named["input_size"])
    # a run resizes in one way, whatever timm's weights of that name take
    return named and {"interpolation": "bicubic", "crop_mode": "center"} | named
