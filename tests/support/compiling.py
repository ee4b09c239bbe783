"""A stand-in for the compiler of torch.compile, which takes too long for a test."""

from collections.abc import Callable
from typing import Any

import torch


class Graphs:
    """A backend of torch.compile that runs what it gets, and counts it."""

    def __init__(self) -> None:
        self.compiled = 0
        self.calls = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        self.compiled += 1

        def run(*args: Any) -> Any:
            self.calls += 1
            return graph(*args)

        return run
