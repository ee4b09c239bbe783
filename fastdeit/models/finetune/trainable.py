"""The weights that are trained: all, attention and heads, or only the heads; the others are
frozen."""

from collections.abc import Sequence

from torch import nn

from fastdeit.config.parse import require

ATTENTION = ".attn."
"""A string in the name of every parameter of an attention layer, in our models and timm's."""

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def freeze_weights(model: nn.Module, trainable: str, heads: Sequence[str]) -> None:
    """Freeze the parameters of a model that `trainable` does not name.

    trainable: "all"; "attention", the attention layers, the heads and the position embedding, as
    deit's --attn-only (main.py); "heads". heads: names of modules. Raises ValueError for
    "attention" of a model that has none.
    """
    if trainable == "all":
        return
    names = [name for name, _ in model.named_parameters()]
    has_attention = any(ATTENTION in name for name in names)
    allowed = "all or heads with a model without attention layers"
    require(trainable == "heads" or has_attention, "trainable", trainable, allowed)
    for name, parameter in model.named_parameters():
        of_attention = ATTENTION in name or name == "pos_embed"
        of_head = name.rpartition(".")[0] in heads
        parameter.requires_grad_(of_head or (of_attention and trainable == "attention"))


def list_frozen_norms(model: nn.Module) -> list[nn.Module]:
    """Return the batch norms whose weights are frozen, of a model in which something is: they
    belong in evaluation mode, since their statistics are weights that do not change."""
    if all(parameter.requires_grad for parameter in model.parameters()):
        return []
    norms = [layer for layer in model.modules() if isinstance(layer, _BATCH_NORMS)]
    return [norm for norm in norms if not any(weight.requires_grad for weight in norm.parameters())]


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Return the number of elements of all parameters, and of those that are trained."""
    sizes = [(weight.numel(), weight.requires_grad) for weight in model.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, trains in sizes if trains)
