"""A pytest plugin, `-p tests.support.imagined_processor`: torch on a processor that rounds
differently for each shape and memory layout.

The last bits of a matrix product or of a sum may depend on the shapes, the strides and the
alignment of its operands: a library chooses its code by them, and other code on another processor.
Here they always do. So what is computed twice in the same way, on the same layout, stays equal to
the bit, and all else differs, whatever processor the tests run on.
"""

import subprocess
import sys
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.support.ranks import Ranks

# from MKL and oneDNN, which may look at the alignment too
PRODUCTS = {
    *("mm", "addmm", "bmm", "baddbmm", "dot", "mv", "addmv", "convolution", "convolution_backward"),
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention_for_cpu_backward",
    *("gelu", "gelu_backward"),
}
# of ATen itself
SUMS = {
    *("sum", "mean", "var", "var_mean", "std"),
    *("linalg_vector_norm", "logsumexp", "_adaptive_avg_pool2d"),
    *("_softmax", "_softmax_backward_data", "_log_softmax", "_log_softmax_backward_data"),
    *("native_layer_norm", "native_layer_norm_backward"),
    *("native_batch_norm", "native_batch_norm_backward"),
    *("_upsample_bicubic2d_aa", "upsample_bicubic2d"),
}
_ALIGNMENT = 64  # bytes: a vector register, and a line of the cache


class ImaginedProcessor(TorchDispatchMode):
    """Mode in which fp32 results of `PRODUCTS` and `SUMS` on a CPU are slightly too large.

    The error is 0 to 6 units in the last place.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in PRODUCTS or name in SUMS:
            inputs = _tensors_on_the_cpu((args, kwargs))
            layouts = [_layout(tensor, name in PRODUCTS) for tensor in inputs]
            factors = _factors(zlib.crc32(repr((name, layouts)).encode()))
            for tensor in _tensors_on_the_cpu(out):
                if tensor.dtype == torch.float32:
                    columns = torch.arange(tensor.shape[-1]) if tensor.ndim else torch.tensor(0)
                    tensor.mul_(factors[columns % len(factors)])
        return out


def _factors(code: int) -> torch.Tensor:
    """Return fp32 (10,): 1 plus 0 to 6 units in the last place, from digits of `code` to base 7."""
    return (
        1
        + torch.tensor([code // 7**place % 7 for place in range(10)])
        * torch.finfo(torch.float32).eps
    )


def _tensors_on_the_cpu(tree: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors that have memory; those that torch.export traces with have none."""
    for leaf in tree_leaves(tree):
        if type(leaf) in (torch.Tensor, torch.nn.Parameter) and leaf.device.type == "cpu":
            yield leaf


def _layout(tensor: torch.Tensor, aligned: bool) -> tuple[Any, ...]:
    offset = tensor.data_ptr() % _ALIGNMENT if aligned else 0
    return tuple(tensor.shape), tensor.stride(), offset


def _start(self: subprocess.Popen[Any], args: Any, *rest: Any, **more: Any) -> None:
    if sys.executable in args:
        pytest.skip("a new process would have the real processor")
    _real_start(self, args, *rest, **more)


_real_start = subprocess.Popen.__init__


def _refuse(*_: object, **__: object) -> None:
    pytest.skip("ranks would have the real processor")


def pytest_sessionstart() -> None:
    ImaginedProcessor().__enter__()
    Ranks.__init__ = _refuse  # type: ignore[assignment,method-assign]
    subprocess.Popen.__init__ = _start  # type: ignore[method-assign]
