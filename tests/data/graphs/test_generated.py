"""DALI's generated code: nothing of it is left where others could write."""

import ast
import tempfile
from pathlib import Path

import pytest
from nvidia.dali import fn, pipeline_def

from fastdeit.data.graphs.generated import private_code
from tests.support.launching import ROOT


@private_code()
@pipeline_def(enable_conditionals=True, batch_size=2, num_threads=1, device_id=None)
def build_graph():  # type: ignore[no-untyped-def]
    if fn.random.coin_flip(dtype=0):
        number = fn.random.uniform()
    else:
        number = fn.random.uniform()
    return number


def test_code_of_a_graph_leaves_nothing_in_the_folder_of_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = tempfile.tempdir
    (numbers,) = build_graph().run()
    assert len(numbers) == 2
    assert tempfile.tempdir == before and not list(tmp_path.iterdir())


def test_every_graph_with_conditionals_is_built_in_private() -> None:
    files = (ROOT / "fastdeit").rglob("*.py")
    graphs = [
        [ast.unparse(one) for one in node.decorator_list]
        for file in files
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef) and "enable_conditionals" in ast.unparse(node)[:500]
    ]
    found = [names for names in graphs if any("enable_conditionals" in name for name in names)]
    assert len(found) >= 2 and all(names[0] == "private_code()" for names in found)
