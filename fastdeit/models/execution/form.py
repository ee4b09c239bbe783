"""The form in which a teacher's network runs: in chunks of a batch, compiled, with cuDNN's choice
of algorithms.

None of it changes the logits by more than their rounding.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch

Logits = Callable[[torch.Tensor], torch.Tensor]
"""A function from images (B, 3, H, W) to logits (B, K)."""


class Execution(NamedTuple):
    """The form in which a network runs.

    batch: images at once, 0: all. compiled: by torch.compile, at the first call. benchmark: cuDNN
    times its algorithms for each new shape, and takes the fastest.
    """

    batch: int = 0
    compiled: bool = False
    benchmark: bool = False

    def describe(self) -> list[str]:
        """Return phrases for a line of the log."""
        compiled = ["compiled"] if self.compiled else []
        return compiled + (["cuDNN times its algorithms"] if self.benchmark else [])


AS_IT_IS = Execution()
"""The form that changes nothing: the whole batch at once, not compiled."""


def run_in_parts(run: Logits, images: torch.Tensor, execution: Execution) -> torch.Tensor:
    """Return the logits (B, K) of `run` for images (B, 3, H, W), `execution.batch` at once."""
    parts = images.split(execution.batch or len(images))
    with choose_algorithms(benchmark=execution.benchmark):
        logits = [run(part) for part in parts]
    return logits[0] if len(logits) == 1 else torch.cat(logits)


@contextmanager
def choose_algorithms(*, benchmark: bool) -> Iterator[None]:
    """Let cuDNN time its algorithms in this context, if `benchmark`; restore the previous setting
    at the end."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = benchmark or before
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
