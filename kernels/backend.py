"""Which form of an op runs: its Triton kernel or its reference. Every `<op>` of this folder asks
`is_fused`.

"auto" takes the kernels for CUDA tensors; "reference" takes plain torch everywhere, for comparison;
"triton" takes the kernels everywhere, which on CPU tensors needs Triton's interpreter
(TRITON_INTERPRET=1).
"""

import torch

BACKENDS = ("auto", "reference", "triton")
_backend = "auto"


def set_backend(name: str) -> None:
    """Choose for the whole process, before anything is compiled. Raises ValueError for an unknown
    name."""
    if name not in BACKENDS:
        raise ValueError(f"unknown kernel backend {name!r}: choose from {', '.join(BACKENDS)}")
    global _backend
    _backend = name


def is_fused(tensor: torch.Tensor) -> bool:
    """Whether an op with this argument runs as a Triton kernel."""
    return _backend == "triton" or (_backend == "auto" and tensor.is_cuda)
