"""The findings on a network, from its tensors and layers, and from one forward pass."""

import math
import re
from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import DropPath
from torch import nn

from fastdeit.audit.findings import Finding, Findings
from fastdeit.audit.trace import Trace, trace_network
from fastdeit.models.sizes import WIDTHS, StateDict
from fastdeit.models.student import Student

_ITEMS = ("distillation_token", "positions", "pre_norm", "qkv_bias", "size", "layer_scale")
"""The items that only a Vision Transformer has."""

_QKV = re.compile(r"(^|\.)attn\.(qkv|q_proj|k_proj|v_proj|q|k|v)\.weight$")
_QKV_BIAS = re.compile(r"(^|\.)attn\.(qkv|q_proj|k_proj|v_proj|q|k|v)[._]bias$")
_LAYER_SCALE = re.compile(r"(^|\.)(ls[12]\.gamma|gamma_[12])$")
_BLOCK = re.compile(r"blocks\.(\d+)\.")

_STD = 0.02
"""The standard deviation of initial weights in deit's code (models.py)."""

_ERRORS = 5
"""The number of standard errors within which a measured standard deviation is `_STD`."""


def read_network(network: nn.Module, name: str, heads: Sequence[str], *, trained: bool) -> Findings:
    """Return the findings on the structure of a network.

    name: of its architecture; heads: names of its heads' modules; trained: whether its weights are
    those of a file. For the forward pass they are replaced by initial ones.
    """
    state = network.state_dict()
    if not _is_vit(state):
        found = Finding(f"{name} is no Vision Transformer", False)
        return dict.fromkeys((*_ITEMS, "heads_at_inference"), found) | read_drops(network)
    stored = {
        "distillation_token": _read_token(state, heads),
        "positions": _read_positions(network, state),
        "qkv_bias": _read_qkv_bias(state, trained),
        "size": _read_size(network, state),
        "layer_scale": _read_layer_scale(state),
        **read_drops(network),
    }
    # last, as it replaces the weights
    return stored | _read_trace(network, trace_network(network, heads))


def read_drops(network: nn.Module) -> Findings:
    """Return the findings on DropPath and dropout, as the layers have them."""
    dropouts = [layer.p for layer in network.modules() if isinstance(layer, nn.Dropout)]
    rate = max(dropouts, default=0.0)
    dropout = Finding(f"up to {rate:g}" if rate else "none", rate == 0)
    return {"drop_path": judge_drop_path(_list_rates(network)), "dropout": dropout}


def judge_drop_path(rates: Sequence[float]) -> Finding:
    """Return the finding on the rate of each block."""
    if not any(rates):
        return Finding("none", False)
    first, last, steps = rates[0], rates[-1], max(1, len(rates) - 1)
    line = [first + (last - first) * number / steps for number in range(len(rates))]
    straight = all(abs(one - other) < 1e-6 for one, other in zip(rates, line, strict=True))
    if first == last:
        return Finding(f"{last:g} in every block" if straight else f"up to {max(rates):g}", False)
    text = f"{first:g} to {last:.3g}, {'' if straight else 'not '}linearly"
    return Finding(text, straight and first == 0 and abs(last - 0.1) < 1e-6)


def _list_rates(network: nn.Module) -> list[float]:
    """Return the rate of DropPath of each block, or of each layer of a network without blocks."""
    if isinstance(network, Student):
        return list(network.drop_path_rates)
    return [_find_rate(part) for part in list_blocks(network) or network.children()]


def list_blocks(network: nn.Module) -> list[nn.Module]:
    """Return the blocks of a transformer; none of another network."""
    blocks: Any = getattr(network, "blocks", None)
    return list(blocks) if isinstance(blocks, nn.Sequential | nn.ModuleList) else []


def _find_rate(part: nn.Module) -> float:
    layers = [layer for layer in part.modules() if isinstance(layer, DropPath)]
    return max((layer.drop_prob for layer in layers), default=0.0)


@torch.no_grad()
def read_initial_weights(network: nn.Module) -> Finding:
    """Return the finding on the weights that a network has when it is built: those of its linear
    layers and its position embedding."""
    layers = [layer.weight for layer in network.modules() if isinstance(layer, nn.Linear)]
    positions: Any = getattr(network, "pos_embed", None)
    weights = [*layers, positions] if isinstance(positions, torch.Tensor) else layers
    if not weights:
        return Finding("", None)
    if all(map(_has_initial_spread, weights)):
        return Finding(f"normal, standard deviation {_STD:g}", True)
    low, high = (float(end([weight.std() for weight in weights])) for end in (min, max))
    return Finding(f"standard deviation {low:.2g} to {high:.2g}", False)


def _has_initial_spread(weight: torch.Tensor) -> bool:
    """Return True if a weight's standard deviation is `_STD`, but for chance: the relative standard
    error of one that is measured on n normal values is 1 / √(2n)."""
    error = 1 / math.sqrt(2 * weight.numel())
    return abs(float(weight.std()) / _STD - 1) < _ERRORS * error


def _is_vit(state: StateDict) -> bool:
    has_blocks = any(_QKV.search(key) and _BLOCK.match(key) for key in state)
    patches = state.get("patch_embed.proj.weight")
    return has_blocks and patches is not None and patches.ndim == 4


def _read_token(state: StateDict, heads: Sequence[str]) -> Finding:
    token = state.get("dist_token")
    if token is None:
        return Finding("none", False)
    if len([head for head in heads if f"{head}.weight" in state]) < 2:
        return Finding("a token without a head", False)
    return Finding("dist_token and head_dist", token.shape[1] == 1)


def _read_positions(network: nn.Module, state: StateDict) -> Finding:
    positions = state.get("pos_embed")
    patches = _count_patches(network)
    if positions is None or positions.ndim != 3 or not patches:
        return Finding("none, or of another form", False)
    rows = positions.shape[1]
    parameter = dict(network.named_parameters()).get("pos_embed")
    learned = parameter is not None and parameter.requires_grad
    rotary = getattr(network, "rope", None) is not None
    text = f"{rows} = {patches} + {rows - patches}, {'learned' if learned else 'fixed'}"
    text += ", and a rotary one" if rotary else ""
    return Finding(text, rows == patches + 2 and learned and not rotary)


def _count_patches(network: Any) -> int:
    """Return the number of patches of an image, of our student or a model of timm; 0 if nothing
    names it."""
    if isinstance(network, Student):
        return network.grid_size**2
    return int(getattr(network.patch_embed, "num_patches", None) or 0)


def _read_qkv_bias(state: StateDict, trained: bool) -> Finding:
    """Return the finding on the bias of query, key and value; a trained one of zeros is none."""
    layers = {_number_of(key) for key in state if _QKV.search(key)}
    biases = {key: value for key, value in state.items() if _QKV_BIAS.search(key)}
    having = {_number_of(key) for key in biases}
    if not layers:
        return Finding("no projection of a known name", None)
    if not biases:
        return Finding("none", True)
    text = f"in {len(having)} of {len(layers)} blocks"
    if trained and not any(bool(value.any()) for value in biases.values()):
        return Finding(f"{text}, all 0: as without", True)
    return Finding(text, False)


def _number_of(key: str) -> str:
    found = _BLOCK.search(key)
    return found[1] if found else ""


def _read_size(network: Any, state: StateDict) -> Finding:
    width, _, _, patch = state["patch_embed.proj.weight"].shape
    depth = len(network.blocks)
    counts = [part.num_heads for part in network.modules() if hasattr(part, "num_heads")]
    heads = counts[0] if counts else 0
    names = {size: name for name, size in WIDTHS.items()}
    name = names.get((width, depth, heads), "")
    letter = {"tiny": "Ti: ", "small": "S: ", "base": "B: "}.get(name, "")
    text = f"{letter}width {width} in {heads} heads, {depth} blocks, patches of {patch} px"
    return Finding(text, bool(name) and patch == 16)


def _read_layer_scale(state: StateDict) -> Finding:
    has = any(_LAYER_SCALE.search(key) for key in state)
    return Finding("in every branch" if has else "none", not has)


def _read_trace(network: Any, trace: Trace | None) -> Findings:
    """Return the findings on the order in a block and on the heads, as they were measured."""
    if trace is None:
        return {}
    return {"pre_norm": _read_order(network, trace), "heads_at_inference": _read_heads(trace)}


def _read_order(network: Any, trace: Trace) -> Finding:
    if not trace.inputs:
        return Finding("attention and MLP have other names", None)
    if not isinstance(getattr(network, "norm_pre", nn.Identity()), nn.Identity):
        return Finding("a norm before the first block", False)
    normalised = [name for name, values in trace.inputs.items() if _is_normalised(values)]
    text = f"pre-norm, LayerNorm, in {len(normalised)} of {len(trace.inputs)} layers"
    return Finding(text, len(normalised) == len(trace.inputs))


def _is_normalised(tokens: torch.Tensor) -> bool:
    """Return True for tokens (B, N, D) of mean 0 and variance 1, as LayerNorm gives them with its
    initial weights."""
    mean = tokens.mean(-1).abs()
    distance = (tokens.var(-1, correction=0) - 1).abs()
    # of most tokens: registers are so small at first that a norm's epsilon counts
    return bool(mean.median() < 1e-3) and bool(distance.median() < 2e-2)


def _read_heads(trace: Trace) -> Finding:
    if len(trace.heads) != 2:
        return Finding("one head" if len(trace.heads) == 1 else "heads of other names", False)
    cls_logits, dist_logits = trace.heads
    mean = (cls_logits + dist_logits) / 2
    is_mean = torch.allclose(trace.output, mean, rtol=1e-5, atol=1e-6)
    text = "(cls + dist) / 2 of the logits" if is_mean else "another function of both heads"
    return Finding(text, is_mean)
