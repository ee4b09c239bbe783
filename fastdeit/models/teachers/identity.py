"""The identity of a teacher: hashes of what it computes with, wherever it comes from."""

import functools
import inspect
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import nn

from fastdeit.config.parse import ARCHIVES, is_callable
from fastdeit.models.sources import locate_weights
from fastdeit.models.weights import hash_weights, read_weights
from fastdeit.storage.tensor_files import hash_tensors

_DEPTH = 8
"""The largest number of steps from a callable to a tensor that it uses."""


def find_files(sources: Sequence[tuple[str, str]]) -> list[tuple[str, Path]]:
    """Return the name and the local file of each teacher; nothing unless each has one.

    sources: name and source of the weights of each, "" if nothing names it.
    """
    files = [(name, locate_weights(source)) for name, source in sources if source]
    is_whole = len(files) == len(sources) and all(file.is_file() for _, file in files)
    return files if is_whole else []


def identify_files(files: Sequence[tuple[str, Path]]) -> dict[str, Any]:
    """Return what `identify_file` returns, of one teacher or of several; files: name and file of
    each."""
    return combine_facts([identify_file(name, file) for name, file in files])


def combine_facts(each: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the facts of one teacher unchanged; of several, a list for each fact that all have, in
    the order of the teachers."""
    if len(each) == 1:
        return each[0]
    shared = [name for name in each[0] if all(name in facts for facts in each)]
    return {name: [facts[name] for facts in each] for name in shared}


def identify_file(name: str, path: Path) -> dict[str, str]:
    """Return those entries of `Teacher.identity` that a teacher's file decides; no teacher is
    loaded.

    name: as in `load_teacher`. A program's file is hashed by its bytes, a weight file by its
    tensors. Raises ValueError for a file that holds no weights, OSError.
    """
    if name in ARCHIVES:
        return {"program": hash_weights(path)}
    return {} if is_callable(name) else {"weights": hash_tensors(read_weights(path)[0])}


def hash_state(model: object) -> str | None:
    """Return the SHA-256 of the tensors that a network or another callable uses; None if there are
    none to be found. Raises ValueError for a network whose weights have no values yet."""
    tensors = dict(_walk(model, "", {}, _DEPTH))
    return hash_tensors(tensors) if tensors else None


def _walk(
    value: Any, name: str, seen: dict[int, Any], depth: int
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors below a value by their dotted names, each value once."""
    if id(value) in seen or not depth:
        return
    # the value is stored: the id of one that is freed may be that of the next
    seen[id(value)] = value
    if isinstance(value, torch.Tensor):
        yield name, _to_plain(value)
        return
    for key, part in _parts(value).items():
        yield from _walk(part, f"{name}.{key}" if name else str(key), seen, depth - 1)


def _to_plain(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor that can be viewed as bytes. Raises ValueError for one without values."""
    if nn.parameter.is_lazy(tensor) or tensor.is_meta:
        raise ValueError("the teacher has weights without values: load them before it is used")
    if tensor.is_quantized:
        return tensor.dequantize()
    return tensor.to_dense() if tensor.layout is not torch.strided else tensor


def _parts(value: Any) -> Mapping[Any, Any]:
    """Return the values inside a value that may hold tensors, by name."""
    if isinstance(value, nn.Module):
        # a state dict lacks the buffers that are not saved
        return {**dict(value.named_buffers()), **value.state_dict(keep_vars=True)}
    if isinstance(value, Mapping):
        return value
    if isinstance(value, list | tuple):
        return dict(enumerate(value))
    if isinstance(value, functools.partial):
        return {"func": value.func, "args": value.args, **value.keywords}
    if isinstance(value, MethodType):
        return {"self": value.__self__, "func": value.__func__}
    if not callable(value) or isinstance(value, type) or inspect.isbuiltin(value):
        return {}
    return _function_parts(value) if inspect.isfunction(value) else getattr(value, "__dict__", {})


def _function_parts(function: Any) -> Mapping[str, Any]:
    """Return the variables and defaults that a function uses; for a function of torch, without the
    variables of its module."""
    variables = inspect.getclosurevars(function)
    ours = function.__module__ is None or function.__module__.split(".")[0] != "torch"
    defaults = {"defaults": function.__defaults__, "keywords": function.__kwdefaults__}
    return {**(variables.globals if ours else {}), **variables.nonlocals, **defaults}
