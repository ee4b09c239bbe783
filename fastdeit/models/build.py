"""Build the student, or a timm model, and the teacher from a `Config`. Importing it needs no DALI."""

import json
from collections.abc import Sequence
from typing import Any

import timm
import torch
from torch import nn

from fastdeit.config.schema import Config
from fastdeit.distributed.world import World
from fastdeit.models.student import SIZES, Student, build_student
from fastdeit.models.teacher import Teacher, load_teacher
from fastdeit.models.weights import check_match, has_qkv_bias, load_student_weights, read_weights


def build_model(config: Config, num_classes: int) -> tuple[nn.Module, list[str]]:
    """The model to train, with fresh weights or those of --finetune, and notes on what was changed
    to fit them."""
    torch.manual_seed(config.run.seed)
    if config.model.model in SIZES:
        return _build_student(config, num_classes)
    name, size = config.model.model, config.data.input_size
    cfg = timm.get_pretrained_cfg(name, allow_unregistered=True)
    sized = {"img_size": size} if cfg is not None and cfg.fixed_input_size else {}
    model = timm.create_model(
        name,
        pretrained=False,
        num_classes=num_classes,
        drop_path_rate=config.model.drop_path or None,
        **sized,
    )
    return model, _load_timm_weights(model, config.model.finetune) if config.model.finetune else []


def _load_timm_weights(model: nn.Module, path: str) -> list[str]:
    """Loads a checkpoint into a timm model; its classifier stays fresh when the file's has another
    size."""
    state, own, notes = read_weights(path)[0], model.state_dict(), []
    named: Any = model.pretrained_cfg["classifier"]  # type: ignore[index]  # timm sets it on every model
    for classifier in (named,) if isinstance(named, str) else named:
        found = state.get(f"{classifier}.weight")
        if found is not None and found.shape != own[f"{classifier}.weight"].shape:
            notes.append(f"{classifier} left as initialised: {len(found)} classes in the file")
            state |= {
                name: value for name, value in own.items() if name.startswith(f"{classifier}.")
            }
    check_match(own, state, "the model")
    model.load_state_dict(state)
    return notes


def _build_student(config: Config, num_classes: int) -> tuple[Student, list[str]]:
    chosen = config.model
    sizes = ("patch_size", "embed_dim", "depth", "num_heads")
    overrides = {name: getattr(chosen, name) for name in sizes if getattr(chosen, name) is not None}
    notes, qkv_bias = [], chosen.qkv_bias
    if chosen.finetune and not qkv_bias and has_qkv_bias(read_weights(chosen.finetune)[0]):
        notes, qkv_bias = ["--qkv-bias turned on: the weights of --finetune have it"], True
    student = build_student(
        chosen.model,
        num_classes=num_classes,
        image_size=config.data.input_size,
        qkv_bias=qkv_bias,
        drop_path=chosen.drop_path,
        **overrides,
    )
    if chosen.finetune:
        notes += load_student_weights(student, chosen.finetune)
    return student, notes


def build_teacher(config: Config, world: World, classes: tuple[str, ...]) -> Teacher | None:
    """The live teacher on this rank's device, or None where none is needed.

    classes: the data set's, in the order of the labels. Raises ValueError if the teacher's file
    names other ones.
    """
    if not config.distill.needs_teacher:
        return None
    teacher = load_teacher(
        config.distill.teacher_model,
        config.distill.teacher_path,
        num_classes=len(classes),
        device=world.device,
        dtype=precision(config, world)[1],
        student_mean=config.data.mean,
        student_std=config.data.std,
        student_size=config.data.input_size,
    )
    if teacher.classes not in (None, classes):
        raise ValueError(
            f"--teacher-path: {config.distill.teacher_path} knows other classes than {config.data.data_path}"
        )
    return teacher


def weight_metadata(config: Config, classes: Sequence[str], model: nn.Module) -> dict[str, str]:
    """What student.safetensors tells of itself, as JSON values: enough to build the model and its
    input again."""
    facts = {
        "input_size": config.data.input_size,
        "mean": config.data.mean,
        "std": config.data.std,
        "crop_pct": config.data.eval_crop_ratio,
        "num_classes": len(classes),
        "classes": classes,
    }
    if isinstance(model, Student):
        facts["num_heads"] = model.num_heads
    return {"model": config.model.model} | {
        name: json.dumps(value) for name, value in facts.items()
    }


def precision(config: Config, world: World) -> tuple[str, torch.dtype]:
    """`bf16` or `fp32`, and the dtype that activations have."""
    name = config.run.precision
    name = ("bf16" if world.device.type == "cuda" else "fp32") if name == "auto" else name
    return name, torch.bfloat16 if name == "bf16" else torch.float32
