"""Safetensors files of unknown origin: what the header claims is checked before a tensor is made."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

HEADER_LIMIT = 1 << 22
"""Bytes; 30,000 tensors fit. The library allows 100 million and takes up a multiple of them."""

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@contextmanager
def open_tensors(path: Path) -> Iterator[Any]:
    """The file as `safetensors.safe_open` gives it. Raises ValueError if it is not whole, or its
    header too long."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > HEADER_LIMIT:
        raise ValueError(
            f"{path} is no whole safetensors file: a header of {length:,} bytes, allowed are {HEADER_LIMIT:,}"
        )
    try:
        with safe_open(path, framework="pt") as tensors:
            yield tensors
    except SafetensorError as error:
        raise ValueError(f"{path} is no whole safetensors file: {error}") from error


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors, on the CPU, and the metadata. Raises what `open_tensors` raises."""
    with open_tensors(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


def check_header(path: Path, wanted: Mapping[str, torch.Tensor]) -> None:
    """Raises ValueError naming the first few tensors that are not as in `wanted` (on any device,
    also "meta")."""
    with open_tensors(path) as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        found = {
            name: (torch.Size(part.get_shape()), _DTYPES.get(part.get_dtype()))
            for name, part in slices.items()
        }
    expected = {name: (tensor.shape, tensor.dtype) for name, tensor in wanted.items()}
    names = [
        name
        for name in sorted(found.keys() | expected.keys())
        if found.get(name) != expected.get(name)
    ]
    if names:
        lines = [
            f"{name}: {_shown(found.get(name))}, not {_shown(expected.get(name))}"
            for name in names[:3]
        ]
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise ValueError(f"{path} does not fit the model: {'; '.join(lines)}{more}")


def _shown(tensor: tuple[torch.Size, torch.dtype | None] | None) -> str:
    if tensor is None:
        return "none"
    return f"{tuple(tensor[0])} {str(tensor[1]).removeprefix('torch.')}"
