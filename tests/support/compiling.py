"""A stand-in for the compiler of torch.compile, which takes too long for a test."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode


class CountingBackend:
    """A backend of torch.compile that runs what it gets, and counts it.

    Skips the test inside a dispatch mode (tests/support/imagined_processor.py), where torch does
    not compile.
    """

    def __init__(self) -> None:
        if _get_current_dispatch_mode() is not None:
            pytest.skip("torch does not compile inside a dispatch mode")
        self.compiled = 0
        self.calls = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        self.compiled += 1

        def run(*args: Any) -> Any:
            self.calls += 1
            return graph(*args)

        return run
