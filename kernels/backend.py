"""Choice between the Triton kernel and the reference of an op. Every `<op>` of this folder calls
`is_fused`.

"auto" takes the kernels for CUDA tensors; "reference" takes plain torch everywhere, for comparison;
"triton" takes the kernels everywhere, which on CPU tensors needs Triton's interpreter
(TRITON_INTERPRET=1). The choice is made when an op is called; its backward is of the same kind as
its forward.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

BACKENDS = ("auto", "reference", "triton")
"""The names of the choices."""
# a module global: torch.compile guards on it, and reading it costs an op nothing
_backend = "auto"


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Call the ops in this context with this backend; restore the previous backend at the end.

    Not thread-safe. Raises ValueError for an unknown name.
    """
    global _backend
    if name not in BACKENDS:
        raise ValueError(f"kernels must be one of {', '.join(BACKENDS)} (got {name!r})")
    before = _backend
    _backend = name
    try:
        yield
    finally:
        _backend = before


def is_fused(tensor: torch.Tensor) -> bool:
    """Return True if an op with this argument runs as a Triton kernel."""
    return _backend == "triton" or (_backend == "auto" and tensor.is_cuda)
