import torch
from benchmarks import harness
from fastdeit.kernels.resize import resize_triton


def _launch(side: int, size: int):
    i32 = torch.int32
    return resize_triton(
        torch.zeros(4 * side * side * 3, dtype=torch.uint8),
        torch.arange(4) * (3 * side * side),
        torch.full((4,), side * 3, dtype=i32),
        torch.full((4, 2), side, dtype=i32),
        torch.tensor([[size, size, 0, 0]] * 4, dtype=i32),
        torch.zeros(4, dtype=torch.bool),
        size,
    )


LAUNCHES = [
    harness.Launch("resize 224", lambda: _launch(316, 224), streams=("_resize_second_kernel",)),
    harness.Launch("resize ragged", lambda: _launch(61, 37)),
]
