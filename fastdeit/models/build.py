"""The student, or a timm model, and the teacher, built from a `Config`. Importing this module needs
no DALI."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import timm
import torch
from torch import nn

from fastdeit.config.parse import require
from fastdeit.config.schema import Config
from fastdeit.distributed.world import World
from fastdeit.models.execution.compilation import check_compiler
from fastdeit.models.execution.form import Execution
from fastdeit.models.execution.outputs import count_heads
from fastdeit.models.finetune.architecture import list_settings, note_normalisation
from fastdeit.models.finetune.fit import fit_other_student
from fastdeit.models.finetune.trainable import freeze_weights
from fastdeit.models.hub import EvalView, describe_model, describe_weights, read_class_names
from fastdeit.models.network import WeightFile, build_network, read_weight_file
from fastdeit.models.sizes import SIZES, has_qkv_bias, suggest_names
from fastdeit.models.sources import find_weights
from fastdeit.models.student import Student, build_student
from fastdeit.models.teachers.ensemble import LiveTeacher, load_teachers
from fastdeit.models.teachers.view import Preprocessing
from fastdeit.models.weights import (
    HEADS,
    StateDict,
    check_match,
    fit_heads,
    fit_student_weights,
)

_STUDENTS = (
    "deit_{tiny,small,base}[_distilled]_patch16_{224,384}, "
    "deit3_{small,medium,base,large,huge}_patch{16,14}_{224,384}"
)


class Finetune(NamedTuple):
    """The weights of --finetune; trained: the names of their classes, None if nothing names
    them."""

    file: WeightFile
    trained: tuple[str, ...] | None


def build_model(config: Config, classes: Sequence[str]) -> tuple[nn.Module, list[str]]:
    """Build the model to train, with fresh weights or those of --finetune; return it, and notes on
    what was changed to fit them and on what the model lacks.

    classes: of the data set, in the order of the labels; a head that was trained for other classes
    has its initial weights. Raises ValueError for weights that do not fit.
    """
    finetune = _read_finetune(config.model.finetune) if config.model.finetune else None
    build = _build_student if config.model.model in SIZES else _build_timm_model
    model, notes = build(config, classes, finetune)
    if finetune is not None:
        notes += note_normalisation(finetune.file, config.data.mean, config.data.std)
    freeze_weights(model, config.model.trainable, list_heads(model))
    return model, notes


def follow_weights(config: Config) -> Config:
    """Return the settings with the model of --finetune, its name and sizes, where --model is empty;
    sizes that are set do not change. Without the file nothing changes: `check_config` names it.

    Raises ValueError for a file that cannot be read, or does not name its architecture.
    """
    chosen = config.model
    source = chosen.finetune
    if chosen.model or not source or not find_weights(source).is_file():
        return config
    found = list_settings(source, read_weight_file(source))
    return config.replace(model={name: getattr(chosen, name) or found[name] for name in found})


def check_model(config: Config) -> None:
    """Raise ValueError unless the model has a known name and fits the sizes of the images."""
    name = config.model.model
    size = config.data.eval_input_size
    if name not in SIZES and not timm.is_model(name):
        require(False, "model", name, f"{_STUDENTS}, or a timm model{suggest_names(name)}")
    if name in SIZES:
        _check_student(config)
    elif size and timm.get_pretrained_cfg(name, allow_unregistered=True).fixed_input_size:
        allowed = f"0 with --model {name}, which is built for one size"
        require(size == config.data.input_size, "eval_input_size", size, allowed)


def _check_student(config: Config) -> None:
    model = config.model
    patch = model.patch_size or SIZES[model.model].patch_size
    for flag in ("input_size", "eval_input_size"):
        side = getattr(config.data, flag)
        require(side % patch == 0, flag, side, f"a multiple of the patch size, {patch}")
    width = model.embed_dim or SIZES[model.model].embed_dim
    heads = model.num_heads or SIZES[model.model].num_heads
    allowed = f"a divisor of the width, {width} (--embed-dim)"
    require(width % heads == 0, "num_heads", heads, allowed)


def list_heads(model: nn.Module) -> Sequence[str]:
    """Return the names of the heads: modules of our student, or what timm names for its model."""
    if isinstance(model, Student):
        return HEADS
    # timm sets it on every model
    named: Any = model.pretrained_cfg["classifier"]  # type: ignore[index]
    return (named,) if isinstance(named, str) else named


def _drop_path(config: Config) -> float:
    """Return the rate of DropPath; a frozen backbone has none."""
    return 0.0 if config.model.trainable == "heads" else config.model.drop_path


def _read_finetune(path: str) -> Finetune:
    file = read_weight_file(path)
    return Finetune(file, read_class_names(file.path, file.metadata))


def _build_timm_model(
    config: Config, classes: Sequence[str], finetune: Finetune | None
) -> tuple[nn.Module, list[str]]:
    model, notes = _create_timm_model(config, len(classes))
    separate: Any = getattr(model, "set_distilled_training", None)
    if separate is not None and config.distill.distillation_type != "none":
        separate(True)  # else the model returns the mean of its heads
    data = config.data
    for size in {data.input_size, data.eval_input_size or data.input_size}:
        heads = count_heads(model, config.model.model, size, len(classes))
    notes += _note_one_head(config) if heads == 1 else []
    if finetune is not None:
        # as timm fits them to the size of the images
        fitted = build_network(config.model.model, finetune.file, size=data.input_size)
        notes += _load_timm_weights(model, classes, finetune, fitted.state_dict())
    return model, notes


def _create_timm_model(config: Config, num_classes: int) -> tuple[nn.Module, list[str]]:
    """Create a timm model with weights of the run's seed; return it, and a note if it has no
    DropPath."""
    name = config.model.model
    known = timm.get_pretrained_cfg(name, allow_unregistered=True)
    # a network with a position embedding is built for one size, the others take any
    sized = known is not None and known.fixed_input_size
    arguments = {"num_classes": num_classes}
    if sized:
        arguments["img_size"] = config.data.input_size
    rate = _drop_path(config) or None
    # timm draws from torch's global generator
    torch.manual_seed(config.run.seed)
    try:
        return timm.create_model(name, drop_path_rate=rate, **arguments), []
    except TypeError as error:
        if "drop_path_rate" not in str(error):
            raise
    note = f"{name} has no DropPath: --drop-path {rate:g} has no effect"
    return timm.create_model(name, **arguments), [note]


def _note_one_head(config: Config) -> list[str]:
    """Return a note if one head is trained by both losses."""
    if config.distill.distillation_type == "none":
        return []
    name = config.model.model
    distilled = name.replace("_patch", "_distilled_patch")
    other = f"; {distilled} has one for each" if distilled in SIZES else ""
    return [f"{name} has one head, trained by the labels and the teacher{other}"]


def _load_timm_weights(
    model: nn.Module, classes: Sequence[str], finetune: Finetune, state: StateDict
) -> list[str]:
    """Load `state`, the weights of --finetune after they were made to fit the size of the images;
    return notes on what was changed."""
    before = finetune.file.state
    notes = [
        f"{name} resized from {tuple(before[name].shape)} to {tuple(value.shape)}"
        for name, value in state.items()
        if name in before and before[name].shape != value.shape
    ]
    own = model.state_dict()
    notes += fit_heads(own, state, list_heads(model), finetune.trained, classes)
    check_match(own, state, "the model")
    model.load_state_dict(state)
    return notes


def _build_student(
    config: Config, classes: Sequence[str], finetune: Finetune | None
) -> tuple[Student, list[str]]:
    chosen = config.model
    sizes = {
        "patch_size": chosen.patch_size,
        "embed_dim": chosen.embed_dim,
        "depth": chosen.depth,
        "num_heads": chosen.num_heads,
        "init_values": chosen.init_values,
    }
    overrides = {name: size for name, size in sizes.items() if size is not None}
    notes = [] if SIZES[chosen.model].distilled else _note_one_head(config)
    qkv_bias = chosen.qkv_bias or SIZES[chosen.model].qkv_bias
    if finetune is not None and not qkv_bias and has_qkv_bias(finetune.file.state):
        notes.append("--qkv-bias turned on: the weights of --finetune have it")
        qkv_bias = True
    student = build_student(
        chosen.model,
        num_classes=len(classes),
        image_size=config.data.input_size,
        qkv_bias=qkv_bias,
        reg_tokens=chosen.registers,
        drop_path=_drop_path(config),
        seed=config.run.seed,
        **overrides,
    )
    if finetune is not None:
        state = dict(finetune.file.state)
        own = student.state_dict()
        notes += fit_heads(own, state, HEADS, finetune.trained, classes)
        try:
            notes += fit_other_student(own, state)
        except ValueError as error:
            raise ValueError(f"--finetune {finetune.file.path}: {error}") from error
        notes += fit_student_weights(student, state, antialias=chosen.pos_embed_antialias)
    return student, notes


def build_teacher(config: Config, world: World, classes: tuple[str, ...]) -> LiveTeacher | None:
    """Build the live teacher, or several as one, on this rank's device; return None if the run
    needs none.

    classes: of the data set, in the order of the labels. Raises ValueError if the teacher's file
    names other classes.
    """
    if not config.distill.needs_teacher:
        return None
    return load_teachers(
        config.distill.teachers,
        num_classes=len(classes),
        classes=classes,
        device=world.device,
        dtype=precision(config, world)[1],
        student=Preprocessing(config.data.mean, config.data.std, config.data.input_size),
        asked=config.distill.teacher_view,
        execution=find_execution(config),
    )


def find_execution(config: Config) -> Execution:
    """Return the form in which the teacher runs."""
    distill = config.distill
    compiled = config.run.compile == "on"
    return Execution(distill.teacher_batch, compiled, distill.teacher_benchmark)


def check_compilation(config: Config, world: World) -> None:
    """Raise ValueError if --compile is on and cannot work on this rank's machine."""
    if config.run.compile == "on":
        check_compiler(world.device)


def weight_metadata(config: Config, classes: Sequence[str], model: nn.Module) -> dict[str, str]:
    """Return the metadata of weights; see `describe_weights`."""
    data = config.data
    view = EvalView(data.input_size, data.mean, data.std, data.eval_crop_ratio)
    return describe_weights(config.model.model, model, view, classes)


def hub_config(config: Config, classes: Sequence[str], model: nn.Module) -> dict[str, Any]:
    """Return the content of config.json; see `describe_model`."""
    return describe_model(config.model.model, model, find_eval_view(config), classes)


def find_eval_view(config: Config) -> EvalView:
    """Return the view of the images that the model gets in the evaluations of a run."""
    data = config.data
    size = data.eval_input_size or data.input_size
    return EvalView(size, data.mean, data.std, data.eval_crop_ratio)


def precision(config: Config, world: World) -> tuple[str, torch.dtype]:
    """Return "bf16" or "fp32", and the dtype of activations."""
    name = config.run.precision
    if name == "auto":
        name = "bf16" if world.device.type == "cuda" else "fp32"
    return name, torch.bfloat16 if name == "bf16" else torch.float32
