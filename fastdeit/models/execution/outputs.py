"""The outputs of a timm model, found before any work and without a computation."""

from typing import Any

import torch
from torch import nn

from fastdeit.config.parse import require


def count_heads(model: nn.Module, name: str, size: int, num_classes: int) -> int:
    """Return the number of heads that a model has in training, 1 or 2, by their logits.

    name: of the model, for errors; size: side of the images in pixels. The pass is made in torch's
    meta device, in training mode, and changes nothing. Raises SettingError, in one line, for a
    model that shares weights between modules, does not run on images of this size, or does not
    return the logits (B, num_classes) of one head or two. A model that the meta device cannot run
    counts as one head.
    """
    _refuse_shared(model, name)
    try:
        outputs = _run_on_meta(model, size)
    except Exception as error:
        # an operator without a form for this device, or a value that was asked for
        if "meta" in str(error).lower():
            return 1
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        allowed = f"a model that runs on images of {size} px; this one fails: {reason}"
        require(False, "model", name, allowed)
    heads = outputs if isinstance(outputs, tuple | list) else (outputs,)
    shapes = [tuple(getattr(head, "shape", ())) for head in heads]
    allowed = f"a model that returns the logits (B, {num_classes}) of one head or two"
    ok = shapes in ([(2, num_classes)], [(2, num_classes)] * 2)
    found = " and ".join(map(str, shapes))
    require(ok, "model", name, f"{allowed}, not {found} for two images")
    return len(heads)


def _refuse_shared(model: nn.Module, name: str) -> None:
    """Raise SettingError for a model with a parameter that has two names: a safetensors file holds
    each tensor once."""
    every = [key for key, _ in model.named_parameters(remove_duplicate=False)]
    shared = sorted(set(every) - {key for key, _ in model.named_parameters()})
    allowed = f"a model that shares no weights; {len(shared)} are shared, such as {shared[:1]}"
    require(not shared, "model", name, allowed)


def _run_on_meta(model: nn.Module, size: int) -> Any:
    """Return the outputs for two images in training mode, as tensors without values."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    state = {name: tensor.to("meta") for name, tensor in tensors.items()}
    images = torch.zeros(2, 3, size, size, device="meta")
    was_training = model.training
    try:
        return torch.func.functional_call(model.train(), state, (images,))
    finally:
        model.train(was_training)
