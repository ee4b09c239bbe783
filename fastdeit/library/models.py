"""Models of `import fastdeit`: students, teachers for the images of a loader, trained weights."""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastdeit.audit import build as audit
from fastdeit.config.parse import require_value
from fastdeit.config.schema import Config
from fastdeit.config.schema.model import ModelConfig
from fastdeit.config.schema.samples import DataConfig
from fastdeit.distributed.place import find_device
from fastdeit.export import forms
from fastdeit.inference import analyse, evaluate
from fastdeit.inference.load import LoadedModel, load_model
from fastdeit.library.errors import names_arguments
from fastdeit.library.loader import Loader
from fastdeit.library.settings import check_names, configure
from fastdeit.models.build import build_model, build_teacher, check_model
from fastdeit.models.sizes import SIZES
from fastdeit.models.teachers.ensemble import LiveTeacher

_log = logging.getLogger(__name__)

_STUDENT = {item.name for item in dataclasses.fields(ModelConfig)} - {"model"}


@names_arguments()
def create_student(
    model: str = ModelConfig.model,
    *,
    like: Loader | None = None,
    num_classes: int = 1000,
    classes: Sequence[str] | None = None,
    device: torch.device | str | None = None,
    **settings: Any,
) -> nn.Module:
    """Return a model to train, with fresh weights or those of finetune, in training mode: our
    `Student` for deit_* and deit3_*, else a timm model.

    like: a loader, whose input size, classes and device are the model's. Without it: num_classes,
    or classes, the names in the order of the labels; device None: the GPU, or the CPU if there is
    none. settings: fields of `ModelConfig` (patch_size, embed_dim, depth, num_heads, qkv_bias,
    drop_path, finetune, ...), input_size and seed. A head that the weights of finetune have for
    other classes stays as initialised, which is logged. Raises ValueError naming the argument.
    """
    check_names(settings, _STUDENT | {"input_size", "seed"}, "create_student")
    chosen = {"model": model, "input_size": _find_size(model, like), "distillation_type": "none"}
    config = configure(chosen | settings, "create_student")
    check_model(config)
    require_value(num_classes >= 1, "num_classes", num_classes, "1 or more")
    names = like.classes if like is not None else classes
    # a timm model draws its weights from torch's global generator
    with torch.random.fork_rng(devices=[]):
        student, notes = build_model(config, names or [str(row) for row in range(num_classes)])
    for note in notes:
        _log.warning("%s: %s", model, note)
    return student.train().to(find_device(device) if like is None else like.device)


def _find_size(model: str, like: Loader | None) -> int:
    """Return the side of a model's images: those of a loader, or of the model's name."""
    if like is not None:
        return like.config.data.input_size
    return SIZES[model].image_size if model in SIZES else DataConfig.input_size


@names_arguments(
    teacher_model="model",
    teacher_path="path",
    pretrained_teacher="pretrained",
    teacher_mean="mean",
    teacher_std="std",
    teacher_input_size="input_size",
)
def create_teacher(
    model: str = "",
    path: str | Path = "",
    *,
    like: Loader,
    pretrained: bool = False,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    input_size: int | None = None,
) -> LiveTeacher:
    """Return a frozen teacher for the images of a loader, on its device: a function from mixed
    images (B, 3, H, W), normalised for the student, to logits (B, K) fp32.

    model: a timm model, torchscript, export, or module:callable, which runs code; may be empty for
    a run folder; several, separated by commas, give the mean of their logits. path: its weights.
    pretrained: timm's weights of that name. mean, std, input_size: in place of the teacher's own
    (docs/teachers.md). Raises ValueError naming the argument.
    """
    chosen: dict[str, Any] = {"teacher_model": model, "teacher_path": str(path)}
    chosen |= {"pretrained_teacher": pretrained, "teacher_input_size": input_size}
    chosen |= {"teacher_mean": mean and tuple(mean), "teacher_std": std and tuple(std)}
    asked = configure(chosen, "create_teacher")
    config = dataclasses.replace(like.config, distill=asked.distill)
    teacher = build_teacher(config, like.world, like.classes)
    assert teacher is not None  # a default `Config` needs one
    return teacher


@names_arguments()
def audit_model(
    source: str | Path | Config, *, ema: bool = False, model: str = ""
) -> dict[str, Any]:
    """Return the checklist of DeiT (docs/audit.md) as JSON values: its rows, and how many are
    equal, differ, or cannot be seen.

    source: a run folder, weights as in `load`, or the `Config` of a run. ema, model: as in `load`.
    Raises ValueError for what cannot be read.
    """
    if isinstance(source, Config):
        return audit.audit_settings(source, "Config").describe()
    return audit.audit_source(source, ema=ema, model=model).describe()


@names_arguments()
def load(
    source: str | Path,
    *,
    ema: bool = False,
    model: str = "",
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> LoadedModel:
    """Load a model for inference; its model, transform (of a PIL image), classes and view are
    attributes.

    source: a run folder, a checkpoint, a file of ours, of timm or of deit, `local-dir:FOLDER`,
    `hf-hub:OWNER/NAME`, `https://...`, or a timm model. ema: the EMA of the weights. model: the
    architecture, by timm's name, where the file does not have it. Raises ValueError for weights
    that cannot be read or do not fit.
    """
    return load_model(source, ema=ema, model=model, device=device, dtype=dtype)


evaluate_checkpoint = names_arguments(
    class_map="class_map",
    crop_mode="crop_mode",
    interpolation="interpolation",
    real_labels="real_labels",
    valid_labels="valid_labels",
)(evaluate.evaluate_checkpoint)

analyse_checkpoint = names_arguments(class_map="class_map", images="images", other="other")(
    analyse.analyse_checkpoint
)

export_model = names_arguments(heads="heads", output="path")(forms.export_model)
