"""Activation checkpointing: only the input of a block is stored, and its activations are computed
again in the backward pass. Source: Chen et al. 2016 (1604.06174)."""

from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from fastdeit.config.parse import require


def turn_on_checkpointing(model: Any, name: str) -> None:
    """Make a model compute its blocks again in the backward pass; the results are the same.

    name: of the model, for errors. Raises SettingError for a model of timm that cannot.
    """
    allowed = f"off with --model {name}, which has none"
    require(can_checkpoint(model), "grad_checkpointing", True, allowed)
    model.set_grad_checkpointing(True)
    for layer in model.modules():
        if isinstance(layer, _BatchNorm) and layer.track_running_stats:
            layer.register_forward_pre_hook(_pause_statistics)
            # always_call: the second pass ends with an exception as soon as it has all that is
            # needed
            layer.register_forward_hook(_restore_statistics, always_call=True)


def can_checkpoint(model: Any) -> bool:
    """Return True if a model can compute its blocks again; checkpointing is off afterwards."""
    try:
        model.set_grad_checkpointing(True)
        model.set_grad_checkpointing(False)
    except (AttributeError, AssertionError):  # there is none, or timm refuses it
        return False
    return True


def _pause_statistics(layer: Any, _: Any) -> None:
    """Let a batch norm count no batch twice: within a backward pass it runs for the second time."""
    if torch._C._current_graph_task_id() != -1:
        layer.paused = (layer.momentum, layer.num_batches_tracked)
        layer.momentum = 0.0
        layer.num_batches_tracked = None


def _restore_statistics(layer: Any, *_: Any) -> None:
    if paused := vars(layer).pop("paused", None):
        layer.momentum, layer.num_batches_tracked = paused
