"""Safetensors files of unknown origin: the header is checked before a tensor takes memory; and the
hash of named tensors, whichever file holds them."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

HEADER_LIMIT = 1 << 22
"""The largest header in bytes: 30,000 tensors fit. The library allows 100 million bytes, and takes
several times that memory."""

_NAMED = 3  # tensors that a message names

Form = tuple[torch.Size, torch.dtype | None]
"""The shape and the dtype of a tensor; None: a dtype that this program does not store."""

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
    """Open a file as `safetensors.safe_open` does.

    Raises ValueError if the file is not whole, or its header is too long.
    """
    problem = f"{path} is no whole safetensors file"
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > HEADER_LIMIT:
            raise ValueError(
                f"{problem}: its header must be at most {HEADER_LIMIT:,} bytes (got {length:,})"
            )
        # the library accepts only paths in UTF-8
        opened = f"/proc/self/fd/{file.fileno()}"
        try:
            with safe_open(opened, framework="pt") as tensors:
                yield tensors
        except SafetensorError as error:
            raise ValueError(f"{problem}: {error}") from error


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Return the tensors, on the CPU, and the metadata. Raises as `open_tensors`."""
    with open_tensors(path) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, file.metadata() or {}


def write_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]
) -> None:
    """Write a file whose bytes depend on the arguments alone. Raises OSError."""
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(whole, path, dict(metadata) or None)
    except SafetensorError as error:  # the library's error for a full disk
        raise OSError(f"{path.name}: {error}") from error
    path.chmod(mode)  # the library lets only the owner read the file
    if len(metadata) > 1:
        _sort_metadata(path)


def _sort_metadata(path: Path) -> None:
    """Sort the metadata of a file in place: the library writes them in a random order."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False)
        file.seek(8)
        file.write(text.encode().ljust(length))


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata alone. Raises as `open_tensors`."""
    with open_tensors(path) as file:
        return file.metadata() or {}


def check_header(path: Path, wanted: Mapping[str, torch.Tensor]) -> None:
    """Raise ValueError, which names the first few, for tensors whose names, shapes or dtypes are
    not those of `wanted` (on any device, also "meta"). Raises as `open_tensors`."""
    found: dict[str, Form] = {}
    with open_tensors(path) as file:
        for name in file.keys():  # noqa: SIM118
            part = file.get_slice(name)
            found[name] = (torch.Size(part.get_shape()), _DTYPES.get(part.get_dtype()))
    expected: dict[str, Form] = {
        name: (tensor.shape, tensor.dtype) for name, tensor in wanted.items()
    }
    names = sorted(found.keys() | expected.keys())
    wrong = [name for name in names if found.get(name) != expected.get(name)]
    if not wrong:
        return
    lines = [
        f"{name}: {_describe(found.get(name))}, not {_describe(expected.get(name))}"
        for name in wrong[:_NAMED]
    ]
    more = f" and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
    raise ValueError(f"{path} does not fit the model: {'; '.join(lines)}{more}")


def hash_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the SHA-256, in hexadecimal digits, over names, dtypes, shapes and bytes of tensors on
    any device, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        # NumPy has no bfloat16; a tensor without a dimension cannot be viewed as bytes
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _describe(form: Form | None) -> str:
    if form is None:
        return "none"
    shape, dtype = form
    return f"{tuple(shape)} {str(dtype).removeprefix('torch.')}"
