"""Folders from somebody else: a link in place of one of our files leads nowhere."""

import ast
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from fastdeit.commands.data.index import _write_excluded
from fastdeit.data.checks.tables import _locked
from fastdeit.data.remote.journal import lock_folder
from fastdeit.data.remote.parts import Part
from fastdeit.data.remote.source import FetchError, RemoteFile
from fastdeit.reliability.run_lock import RunLock
from fastdeit.storage.jsonl import AppendOnlyFile, append_lines
from fastdeit.storage.run_folder import RunFolder
from fastdeit.teacher_cache.format import CacheError
from fastdeit.teacher_cache.writer import CacheWriter, create_cache
from tests.support.launching import ROOT
from tests.teacher_cache.test_reader import build as build_cache
from tests.teacher_cache.test_reader import manifest

PRECIOUS = '{"mine": 1}\na line without an end'


def fetch_lock(folder: Path) -> None:
    with lock_folder(folder, print, lambda: True):
        pass


def table_lock(folder: Path) -> None:
    with _locked(folder / "train.parquet"):
        pass


def write_cache(folder: Path) -> None:
    CacheWriter(folder).close()


# the file that is a link, and what writes it
WRITERS: dict[str, Callable[[Path], object]] = {
    "metrics.jsonl": lambda folder: AppendOnlyFile(folder / "metrics.jsonl", print),
    "failures.jsonl": lambda folder: append_lines(folder / "failures.jsonl", [{"a": 1}]),
    "lock": lambda folder: RunLock(RunFolder(folder)).acquire(),
    ".fastdeit/fetch.lock": fetch_lock,
    ".train.parquet.lock": table_lock,
    "records.bin": write_cache,
}


@pytest.mark.parametrize("name", WRITERS)
def test_nothing_is_written_through_a_link(name: str, tmp_path: Path) -> None:
    folder, victim = tmp_path / "folder", tmp_path / "victim"
    victim.write_text(PRECIOUS)
    if name == "records.bin":
        build_cache(folder, epochs=())
        (folder / name).unlink()
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).symlink_to(victim)
    with pytest.raises((OSError, FetchError, CacheError), match="is a link, through which"):
        WRITERS[name](folder)
    (folder / name).unlink()
    (folder / name).symlink_to(tmp_path / "not there")
    with pytest.raises((OSError, FetchError, CacheError), match="is a link, through which"):
        WRITERS[name](folder)
    assert victim.read_text() == PRECIOUS and not (tmp_path / "not there").exists()


def test_part_of_a_fetched_file_and_list_of_bad_images_are_no_links(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text(PRECIOUS)
    file = RemoteFile("a.jpg", "https://host/a.jpg", 5, "v", "")
    part = Part(tmp_path, file, 16)
    part.close()
    part.path.unlink()
    part.path.symlink_to(victim)
    with pytest.raises(OSError, match="is a link"):
        Part(tmp_path, file, 16)
    place = tmp_path / "train.parquet"
    (tmp_path / "train-left-out.txt").symlink_to(victim)
    assert _write_excluded([place], ["a.jpg: is bad"]) == tmp_path / "train-left-out.txt"
    assert (tmp_path / "train-left-out.txt").read_text() == "a.jpg: is bad\n"
    assert victim.read_text() == PRECIOUS


def test_manifest_of_a_new_cache_is_not_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    for name in ("lock", "records.bin", "manifest.json.tmp"):
        (tmp_path / "cache" / name).symlink_to(tmp_path / "victim")
        with pytest.raises(CacheError, match="is a link"):
            create_cache(tmp_path / "cache", manifest("hard", 1))
        (tmp_path / "cache" / name).unlink()
    assert not (tmp_path / "victim").exists()


# they open what is their own, or new: a scratch folder, a sealed work folder, the terminal
_OTHERS = {"display/terminal.py", "doctor", "storage/atomic.py", "storage/tensor_files.py"}


def test_files_are_written_by_the_room_for_it() -> None:
    """Every other module opens files for writing with `atomic_open` or `open_no_link`."""
    faults = []
    for path in sorted((ROOT / "fastdeit").rglob("*.py")):
        name = path.relative_to(ROOT / "fastdeit").as_posix()
        if name in _OTHERS or name.split("/")[0] in {*_OTHERS, "kernels"}:
            continue
        nodes = ast.walk(ast.parse(path.read_text()))
        calls = [node for node in nodes if isinstance(node, ast.Call) and _opens(node)]
        faults += [f"{name}:{call.lineno}" for call in calls]
    assert not faults


def _opens(node: ast.Call) -> bool:
    """Return True for a call that opens a file for writing by its name, through a link too."""
    name, arguments = ast.unparse(node.func), [ast.unparse(one) for one in node.args]
    if name == "os.open":
        return "O_RDWR" in arguments[1] or "O_CREAT" in arguments[1]
    is_safe = any(keyword.arg == "opener" for keyword in node.keywords)
    writes = any(re.fullmatch("'[rwabxt+]*[wa+][b+]*'", text) for text in arguments)
    return name.split(".")[-1] == "open" and writes and not is_safe
