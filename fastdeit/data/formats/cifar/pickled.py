"""The plain values in a pickle, read without running it.

`pickle` calls whatever a file names. Here the opcodes are data (`pickletools.genops`), and only
those of CIFAR's files, as Python 2 wrote them, are executed: numbers, bytes, text, tuples, lists,
dicts, and NumPy arrays of bytes. Any other opcode or name is refused.
"""

import pickletools
import reprlib
from collections.abc import Callable
from typing import Any

import numpy as np

_NUMPY = {
    f"{module} {name}": name
    for module in ("numpy.core.multiarray", "numpy._core.multiarray", "numpy")
    for name in ("_reconstruct", "ndarray", "dtype")
}
_MARK = object()


class _Call:
    """A call in a pickle that would make a NumPy array or its dtype; it is not executed."""

    def __init__(self, name: str, arguments: tuple[Any, ...]) -> None:
        self.name = name
        self.arguments = arguments
        self.array: np.ndarray | None = None


def read_pickle(data: bytes) -> Any:
    """Return the value in a pickle; arrays are read-only. Raises ValueError for anything except
    plain values and arrays of bytes."""
    try:
        return _Machine().run(data)
    except (IndexError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"damaged pickle: {error!r}") from error


class _Machine:
    """The stack and the memo of one pickle."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        for opcode, argument, position in pickletools.genops(data):
            if opcode.name == "STOP":
                return _unwrap(self.stack.pop())
            if opcode.name not in _ACTIONS:
                raise ValueError(f"{opcode.name} at byte {position} of the pickle is refused")
            _ACTIONS[opcode.name](self, argument)
        raise ValueError("the pickle has no end")

    def push_global(self, name: str) -> None:
        if name not in _NUMPY:
            raise ValueError(f"the pickle names {reprlib.repr(name)}, which is refused")
        self.stack.append(_NUMPY[name])

    def push_tuple(self, count: int) -> None:
        values = [self.stack.pop() for _ in range(count)]
        self.stack.append(tuple(reversed(values)))

    def pop_to_mark(self) -> list[Any]:
        """Return the values above the last mark, and remove them with the mark."""
        values = []
        while (value := self.stack.pop()) is not _MARK:
            values.append(value)
        return values[::-1]

    def append(self, values: list[Any]) -> None:
        _check(isinstance(self.stack[-1], list), "appends to what is no list")
        self.stack[-1].extend(values)

    def set_items(self, values: list[Any]) -> None:
        _check(isinstance(self.stack[-1], dict), "sets an item of what is no dict")
        # the hash of any other key may take forever
        are_names = all(isinstance(name, bytes | str) for name in values[::2])
        _check(are_names, "has a key that is no text")
        self.stack[-1].update(zip(values[::2], values[1::2], strict=True))

    def call(self) -> None:
        arguments, name = self.stack.pop(), self.stack.pop()
        _check(name in ("_reconstruct", "dtype"), "makes another call than NumPy's")
        self.stack.append(_Call(name, arguments))

    def build(self) -> None:
        state, call = self.stack.pop(), self.stack[-1]
        _check(isinstance(call, _Call), "fills what is no array")
        if call.name == "_reconstruct":
            call.array = _make_array(*state)


def _make_array(
    version: Any, shape: tuple[int, ...], dtype: Any, is_fortran: Any, data: Any
) -> np.ndarray:
    is_bytes = isinstance(dtype, _Call) and dtype.arguments[0] in (b"u1", "u1")
    _check(is_bytes and isinstance(data, bytes), "has an array that is not of bytes")
    return np.frombuffer(data, np.uint8).reshape(shape, order="F" if is_fortran else "C")


def _unwrap(value: Any) -> Any:
    """Return a value with arrays in place of their calls, which are the value itself or values of
    the outermost dict."""
    if isinstance(value, dict):
        return {name: _take_array(inner) for name, inner in value.items()}
    return _take_array(value)


def _take_array(value: Any) -> Any:
    if not isinstance(value, _Call):
        return value
    _check(value.array is not None, "holds a part of an array")
    return value.array


def _check(ok: bool, fault: str) -> None:
    if not ok:
        raise ValueError(f"the pickle {fault}")


def _push(machine: _Machine, value: Any) -> None:
    machine.stack.append(value)


def _push_bytes(machine: _Machine, text: str) -> None:
    # a string of Python 2, which genops decodes
    machine.stack.append(text.encode("latin-1"))


_ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": lambda machine, _: None,
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE", "BINFLOAT"), _push),
    **dict.fromkeys(("BINSTRING", "SHORT_BINSTRING"), _push_bytes),
    "NONE": lambda machine, _: _push(machine, None),
    "NEWTRUE": lambda machine, _: _push(machine, True),
    "NEWFALSE": lambda machine, _: _push(machine, False),
    "MARK": lambda machine, _: _push(machine, _MARK),
    "EMPTY_LIST": lambda machine, _: _push(machine, []),
    "EMPTY_DICT": lambda machine, _: _push(machine, {}),
    "EMPTY_TUPLE": lambda machine, _: _push(machine, ()),
    "TUPLE": lambda machine, _: _push(machine, tuple(machine.pop_to_mark())),
    "TUPLE1": lambda machine, _: machine.push_tuple(1),
    "TUPLE2": lambda machine, _: machine.push_tuple(2),
    "TUPLE3": lambda machine, _: machine.push_tuple(3),
    "APPEND": lambda machine, _: machine.append([machine.stack.pop()]),
    "APPENDS": lambda machine, _: machine.append(machine.pop_to_mark()),
    "SETITEM": lambda machine, _: machine.set_items([machine.stack.pop(-2), machine.stack.pop()]),
    "SETITEMS": lambda machine, _: machine.set_items(machine.pop_to_mark()),
    **dict.fromkeys(
        ("BINPUT", "LONG_BINPUT"),
        lambda machine, number: machine.memo.update({number: machine.stack[-1]}),
    ),
    **dict.fromkeys(
        ("BINGET", "LONG_BINGET"), lambda machine, number: _push(machine, machine.memo[number])
    ),
    "GLOBAL": lambda machine, name: machine.push_global(name),
    "REDUCE": lambda machine, _: machine.call(),
    "BUILD": lambda machine, _: machine.build(),
}
