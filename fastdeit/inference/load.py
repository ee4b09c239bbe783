"""Any checkpoint as a model ready for inference, with its preprocessing and its classes."""

import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import resolve_data_config
from timm.models import PretrainedCfg, is_model_in_modules
from torch import nn

from fastdeit.models.hub import EvalView, read_class_names
from fastdeit.models.names import suggest_names
from fastdeit.models.sizes import SIZES, infer_student_sizes
from fastdeit.models.sources import fetch_weights
from fastdeit.models.student import build_student
from fastdeit.models.teachers.view import MAX_BYTES, parse_json
from fastdeit.models.weights import StateDict, fit_student_weights, read_weights
from fastdeit.storage.atomic import read_bounded
from fastdeit.storage.run_folder import RunFolder
from fastdeit.storage.tensor_files import hash_tensors


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode on its device, and what belongs to it.

    model: our `Student` for the weights of a DeiT, else timm's model. name: timm's, of the
    architecture. classes: names in the order of the outputs; None if nothing has them. source: what
    was asked for. weights: `hash_tensors` of the file's state dict. metadata: of the safetensors
    file.
    """

    model: nn.Module
    name: str
    view: EvalView
    classes: tuple[str, ...] | None
    source: str
    weights: str
    metadata: dict[str, str]


@dataclass(frozen=True)
class _Described:
    """What a weight file and the config.json beside it say of the model."""

    path: Path
    state: StateDict
    metadata: dict[str, str]
    config: Mapping[str, Any]


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
    state, metadata = read_weights(path, ema=ema and path.suffix != ".safetensors")
    described = _Described(path, state, metadata, _read_config(path))
    name = model or _find_name(described, str(source))
    build = _build_student if name in SIZES and _is_deit(state) else _build_timm
    network = build(name, described)
    return LoadedModel(
        model=network.eval().requires_grad_(False).to(device, dtype),
        name=name,
        view=_find_view(name, described),
        classes=read_class_names(path, metadata),
        source=str(source),
        weights=hash_tensors(state),
        metadata=metadata,
    )


def _read_config(path: Path) -> Mapping[str, Any]:
    """Return the config.json beside a file of weights, or of the run that has the checkpoint."""
    is_checkpoint = path.parent.parent.name == RunFolder(Path()).checkpoints.name
    folders = [path.parent, path.parents[2]] if is_checkpoint else [path.parent]
    for file in (RunFolder(folder).model_config for folder in folders):
        if file.is_file():
            content = parse_json(read_bounded(file, MAX_BYTES), str(file))
            if not isinstance(content, dict):
                raise ValueError(f"{file}: must be an object (got {reprlib.repr(content)})")
            return content
    return {}


def _find_name(described: _Described, source: str) -> str:
    named = described.metadata.get("model") or described.config.get("architecture")
    if not named and timm.is_model(source.partition(".")[0]) and not Path(source).exists():
        named = source
    if not named and _is_deit(described.state):
        named = _infer_deit(described.state)
    if not named:
        rule = "does not name its architecture: name it (--model), as timm does"
        raise ValueError(f"{described.path}: {rule}")
    return str(named)


def _is_deit(state: StateDict) -> bool:
    """Return True for a state dict whose every tensor our `Student` has a place for."""
    parts = {key.split(".")[2] if key.startswith("blocks.") else key.split(".")[0] for key in state}
    known = {"norm1", "attn", "ls1", "norm2", "mlp", "ls2", "cls_token", "dist_token", "reg_token"}
    known |= {"pos_embed", "patch_embed", "norm", "head", "head_dist"}
    return {"cls_token", "pos_embed", "patch_embed", "head"} <= parts <= known


def _infer_deit(state: StateDict) -> str:
    """Return the name of the published DeiT with the width and heads of a state dict, or ""."""
    sizes = infer_student_sizes(state, {})
    given = ("embed_dim", "depth", "distilled", "image_size", "patch_size", "no_embed_class")
    for name, size in SIZES.items():
        if all(getattr(size, field) == sizes[field] for field in given):
            return name
    return ""


def _build_student(name: str, described: _Described) -> nn.Module:
    sizes = infer_student_sizes(described.state, described.metadata | {"model": name})
    arguments = described.config.get("model_args") or {}
    if "num_heads" in arguments and "num_heads" not in described.metadata:
        sizes["num_heads"] = int(arguments["num_heads"])
    student = build_student(name, **sizes)  # type: ignore[arg-type]
    fit_student_weights(student, described.state)
    return student


def _build_timm(name: str, described: _Described) -> nn.Module:
    known = _known_config(name)
    arguments = dict(described.config.get("model_args") or {})
    size = _find_view(name, described).size
    if known.fixed_input_size:
        arguments.setdefault("img_size", size)
    count = _count_classes(known, described)
    overlay = {"state_dict": described.state, "num_classes": count}
    try:
        network = timm.create_model(
            name,
            pretrained=True,
            pretrained_cfg_overlay=overlay,
            num_classes=count,
            **arguments,
        )
    except (RuntimeError, TypeError, KeyError, AssertionError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{described.path}: does not fit {name}: {reason[:300]}") from error
    network.pretrained_cfg.pop("state_dict", None)
    return network


def _known_config(name: str) -> PretrainedCfg:
    if not timm.is_model(name.partition(".")[0]):
        raise ValueError(f"--model must be a timm model (got {name!r}){suggest_names(name)}")
    return timm.get_pretrained_cfg(name, allow_unregistered=True) or PretrainedCfg()


def _count_classes(known: PretrainedCfg, described: _Described) -> int:
    """Return the number of outputs: of the classifier in the file, else as it is described."""
    names = [known.classifier] if isinstance(known.classifier, str) else known.classifier or [""]
    weight = described.state.get(f"{names[0]}.weight")
    if weight is not None:
        return len(weight)
    return int(described.config.get("num_classes", known.num_classes))


def _find_view(name: str, described: _Described) -> EvalView:
    """Return the preprocessing: of config.json, else of the file's metadata, else timm's."""
    named = described.config.get("pretrained_cfg") or _read_metadata_view(described)
    known = _known_config(name).to_dict()
    side = 0
    if "input_size" not in named:
        side = _infer_side(name, known["input_size"][-1], described.state)
    if side:
        named = {**named, "input_size": (3, side, side)}
    if named:
        # a test size of timm's belongs to timm's weights
        known = {key: value for key, value in known.items() if not key.startswith("test_")}
    cfg = resolve_data_config(pretrained_cfg=known | dict(named), use_test_size=True)
    return EvalView(
        size=int(cfg["input_size"][-1]),
        mean=tuple(cfg["mean"]),
        std=tuple(cfg["std"]),
        crop_pct=float(cfg["crop_pct"]),
        interpolation=cfg["interpolation"],
        crop_mode=cfg["crop_mode"],
    )


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


def _read_metadata_view(described: _Described) -> dict[str, Any]:
    fields = ("mean", "std", "input_size", "crop_pct")
    found = {
        field: parse_json(described.metadata[field], f"{described.path}: {field}")
        for field in fields
        if field in described.metadata
    }
    if isinstance(found.get("input_size"), int):
        found["input_size"] = (3, found["input_size"], found["input_size"])
    return found
