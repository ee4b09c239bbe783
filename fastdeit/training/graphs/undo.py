"""A trial of a function, after which every tensor has its former value."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Undo(TorchDispatchMode):
    """A context that restores the values of all tensors that existed before, also after an
    exception.

    It copies the memory of a tensor before the first operator that changes it, as the schemas of
    the operators declare; those of the backward pass are seen too. It needs memory for as much as
    the function changes.
    """

    def __init__(self) -> None:
        super().__init__()
        self._copies: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}
        """A memory and its copy, by address; the entry keeps the memory alive."""
        self._made: set[int] = set()
        """Addresses of memory that was allocated within the context; no earlier memory has one of
        them."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        known = {storage._cdata for storage in _storages((args, kwargs))}
        if func._schema.is_mutable:
            self._save(func, args, kwargs)
        result = func(*args, **kwargs)
        self._made |= {storage._cdata for storage in _storages(result)} - known
        return result

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for storage, copy in self._copies.values():
            storage.copy_(copy)

    def _save(self, func: Any, args: Any, kwargs: Any) -> None:
        """Copy what an operator is about to change, once."""
        arguments = func._schema.arguments
        names = [argument.name for argument in arguments]
        named = dict(zip(names, args, strict=False)) | kwargs
        changed = [each.name for each in arguments if each.alias_info and each.alias_info.is_write]
        for storage in _storages([named.get(name) for name in changed]):
            address = storage._cdata
            if address not in self._made and address not in self._copies:
                self._copies[address] = (storage, storage.clone())


def _storages(values: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(values) if torch.is_tensor(leaf)]
