"""The table of operations: every row resolves in every room, and no list stands beside it."""

import ast
from pathlib import Path

import numpy as np
import pytest

import fastdeit
from fastdeit.data.augment import native_operands, native_ops, ops, warp
from fastdeit.data.augment.jit import SOURCE_HASH, SOURCES, source_hash
from fastdeit.plan.operations import (
    JITTER_OPS,
    OPERATIONS,
    OPS,
    RAND_AUGMENT_OPS,
    THREE_OPS,
    Operation,
    op_arguments,
)

ROOT = Path(fastdeit.__file__).parent
EXACT_ARGUMENTS = {
    "levels": ["planes", "table"],
    "statistics": ["planes", "table"],
    "image": ["planes", "fill", "out"],
}


@pytest.mark.parametrize("operation", OPERATIONS, ids=OPS)
def test_every_row_resolves_in_both_backends(operation: Operation) -> None:
    exact = getattr(ops, operation.exact, None) or getattr(warp, operation.exact)
    names = exact.py_func.__code__.co_varnames[: exact.py_func.__code__.co_argcount]
    assert set(EXACT_ARGUMENTS[operation.kind]) <= set(names)
    assert callable(getattr(native_ops, operation.native))
    made = getattr(native_operands, operation.operand)(np.array([0.5, 1.0]), 8, 9)
    assert made.shape[0] == 2 and made.shape[1] <= native_operands.FLOAT_COLUMNS


@pytest.mark.parametrize("operation", OPERATIONS, ids=OPS)
def test_an_argument_is_drawn_shown_and_handed_on_or_absent(operation: Operation) -> None:
    has_argument = operation.argument is not None or operation.span is not None
    assert has_argument == bool(operation.unit) == (operation.operand != "nothing")
    if operation.unit:
        assert operation.unit.format(1.5)
    assert operation.argument is not None or not operation.signed


@pytest.mark.parametrize("number", range(len(RAND_AUGMENT_OPS)), ids=RAND_AUGMENT_OPS)
def test_only_signed_operations_depend_on_the_sign(number: int) -> None:
    magnitude = np.array([7.0, 7.0])
    plus, minus = op_arguments(np.full(2, number), magnitude, np.array([False, True]))
    assert (plus != minus) == OPERATIONS[number].signed


def test_the_sets_hold_rows_of_the_table() -> None:
    assert OPS[: len(RAND_AUGMENT_OPS)] == RAND_AUGMENT_OPS
    assert set(THREE_OPS) | set(JITTER_OPS) <= set(OPS)
    assert len(set(OPS)) == len(OPS)


def test_no_other_file_lists_operations() -> None:
    """One name may stand alone, as a special case; two in a file are a list beside the table."""
    for path in sorted(ROOT.rglob("*.py")):
        if path == ROOT / "plan" / "operations.py" or "kernels" in path.parts:
            continue
        strings = {
            node.value
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        assert len(strings & set(OPS)) < 2, path


def test_compiled_code_depends_on_every_file_and_on_the_table(tmp_path: Path) -> None:
    folder = ROOT / "data" / "augment"
    assert sorted(SOURCES) == sorted(folder.rglob("*.py")) and len(SOURCES) >= 8
    assert source_hash(SOURCES, OPERATIONS) == SOURCE_HASH
    assert source_hash(SOURCES[1:], OPERATIONS) != SOURCE_HASH
    assert source_hash(SOURCES, OPERATIONS[::-1]) != SOURCE_HASH
    changed = tmp_path / SOURCES[-1].name
    changed.write_bytes(SOURCES[-1].read_bytes() + b"\n")
    assert source_hash([*SOURCES[:-1], changed], OPERATIONS) != SOURCE_HASH
