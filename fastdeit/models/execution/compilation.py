"""Networks compiled by torch.compile. The names of their weights do not change, and evaluations run
them uncompiled.

torch's random numbers are drawn as without the compiler, so DropPath and dropout are the same.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from fastdeit.config.parse import require

BACKEND = "inductor"
"""The backend of torch.compile."""


def check_compiler(device: torch.device) -> None:
    """Compile a small function and run it on the device. Raise ValueError where that fails: without
    a C++ compiler, or on a GPU without a C compiler and Triton."""
    try:
        compile_function(torch.neg)(torch.ones(8, device=device))
    # what a compiler raises is of many kinds
    except Exception as error:
        cause = getattr(error, "inner_exception", error)
        reason = next(iter(str(cause).strip().splitlines()), type(cause).__name__)
        require(False, "compile", "on", f"off, as torch.compile fails here: {reason}")


def compile_network(network: nn.Module) -> None:
    """Make the calls of a network run compiled, from the first one on, which waits for the
    compiler."""
    network.compile(**_arguments())


def compile_function(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Return a function that computes the same, compiled at its first call."""
    return torch.compile(function, **_arguments())


def _arguments() -> dict[str, Any]:
    return {"backend": BACKEND, "options": _list_options() if BACKEND == "inductor" else None}


def _list_options() -> dict[str, bool]:
    from torch._inductor import config  # which takes a second

    # headers are compiled in /tmp/torchinductor_USER, which another user can make first, whatever
    # TORCHINDUCTOR_CACHE_DIR says
    headers = "cpp_cache_precompile_headers"
    return {"fallback_random": True} | ({headers: False} if hasattr(config, headers) else {})


@contextmanager
def run_uncompiled() -> Iterator[None]:
    """Run the networks in this context uncompiled, so that no evaluation waits for a compiler, for
    each of its batch sizes, and its results do not depend on one."""
    # importing it takes seconds, and nothing was compiled without it
    is_used = "torch._dynamo" in sys.modules
    with torch.compiler.set_stance("force_eager") if is_used else nullcontext():
        yield
