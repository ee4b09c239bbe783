"""DALI's generated code: nothing of it is left where others could write."""

import ast
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from nvidia.dali import fn, pipeline_def

from fastdeit.data.graphs import generated
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


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of temporary files, in which this process has none yet."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(generated, "_folders", {})
    return tmp_path


def test_code_of_a_graph_lies_where_no_other_user_can_enter(folder: Path) -> None:
    (numbers,) = build_graph().run()
    assert len(numbers) == 2
    (private,) = folder.iterdir()
    assert private.stat().st_mode & 0o077 == 0 and list(private.glob("*.py"))
    assert tempfile.tempdir == str(folder)


def test_graphs_are_built_in_several_threads(folder: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        built = [pool.submit(build_graph) for _ in range(8)]
        assert all(len(one.result().run()[0]) == 2 for one in built)
    assert tempfile.tempdir == str(folder)


def test_a_file_of_another_thread_stays(folder: Path) -> None:
    with private_code(), tempfile.NamedTemporaryFile(delete=False) as file:
        file.write(b"x")
    build_graph()
    assert Path(file.name).read_bytes() == b"x"


def test_the_folder_is_made_again_if_it_was_tidied_away(folder: Path) -> None:
    build_graph()
    (private,) = folder.iterdir()
    shutil.rmtree(private)
    assert len(build_graph().run()[0]) == 2


@pytest.mark.parametrize("last", ["", "hard_exit(0)"], ids=["usual", "a rank's"])
def test_the_folder_is_gone_when_the_process_ends(last: str, tmp_path: Path) -> None:
    code = (
        "from fastdeit.data.graphs.generated import private_code\n"
        "from fastdeit.distributed.exits import hard_exit\n"
        f"with private_code(): pass\n{last}"
    )
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env=environment)
    assert not list(tmp_path.iterdir())


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
