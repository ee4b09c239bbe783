"""A teacher with other weights on each rank."""

import os

import torch
from torch import nn


def network() -> nn.Module:
    """Return a linear network on 32 pixels and three classes; its weights are the rank."""
    layer = nn.Linear(3 * 32 * 32, 3)
    with torch.no_grad():
        layer.weight.fill_(int(os.environ.get("RANK", "0")))
    return nn.Sequential(nn.Flatten(), layer)
