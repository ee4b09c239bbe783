"""`fastdeit fetch`: its output, its exit codes, its mistakes in one line."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from fastdeit.commands.data.fetch import fetch_command
from fastdeit.data.remote import retries
from tests.support.far_server import FarServer, status
from tests.support.fetching import read_folder, write_files
from tests.support.launching import ROOT


@pytest.fixture
def far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FarServer]:
    monkeypatch.setattr(retries, "WAITS_S", (0.001,) * 6)
    folder = tmp_path / "far"
    folder.mkdir()
    write_files(folder, a=5000, b=10)
    with FarServer(folder).running() as server:
        yield server


def run(*argv: str) -> int:
    try:
        return fetch_command(argv)
    except SystemExit as end:
        return int(str(end.code))


def test_files_are_fetched_and_the_room_is_said_first(
    far: FarServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"{far.address}/{{a,b}}.tar"
    assert run(url, str(tmp_path / "out"), "--num-workers", "2") == 0
    first, *rest = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{url}: 2 files, 5.0 kB; to fetch: 5.0 kB; ")
    assert first.endswith(f"free in {tmp_path / 'out'}") and rest == ["fetched 5.0 kB of 5.0 kB"]
    assert read_folder(tmp_path / "out") == read_folder(far.folder)
    assert run(url, str(tmp_path / "out")) == 0
    assert "all of them are in" in capsys.readouterr().out


def test_a_dry_run_lists_the_files_and_writes_nothing(
    far: FarServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(f"{far.address}/{{a,b}}.tar", str(tmp_path / "out"), "--dry-run") == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert lines[:2] == ["5.0 kB  a.tar", "10 bytes  b.tar"] and len(lines) == 3
    assert not (tmp_path / "out").exists()


def test_a_server_that_fails_gives_exit_code_1(
    far: FarServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    far.fail_always("a.tar", status(500))
    assert run(f"{far.address}/a.tar", str(tmp_path / "out")) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("fastdeit: error: ") and "a.tar: the server answers 500; tried" in error
    assert not (tmp_path / "out").exists()


MISTAKES = {
    "no folder": (["URL"], "DIR must be given"),
    "an empty folder": (["FAR/a.tar", ""], "DIR must be given"),
    "no URL": (["http://[::1", "out"], "http://[::1: is no URL ("),
    "no port": (["http://localhost:99999/a.tar", "out"], "http://localhost:99999/a.tar: is no URL"),
    "no workers": (["URL", "out", "--num-workers", "0"], "--num-workers must be 1 to 256 (got 0)"),
    "a local path": (["/data", "out"], "URL must be s3://, gs://, hf://, https://"),
    "a missing file": (["FAR/c.tar", "out"], "c.tar: does not exist there"),
    "a folder": (["FAR/", "out"], "HTTP cannot list"),
    "an unknown flag": (["FAR/a.tar", "out", "--fast"], "--fast"),
    "a falling range": (["FAR/{3..1}.tar", "out"], "must be a rising range"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_writes_nothing(
    name: str,
    far: FarServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    argv, message = MISTAKES[name]
    monkeypatch.chdir(tmp_path)
    assert run(*(word.replace("FAR", far.address) for word in argv)) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()
    assert read_folder(tmp_path) == {f"far/{name}": data for name, data in _far(far).items()}


def _far(far: FarServer) -> dict[str, bytes]:
    return read_folder(far.folder)


def test_ctrl_c_ends_with_130_and_what_has_arrived_stays(far: FarServer, tmp_path: Path) -> None:
    reached = Event()
    released = Event()

    def hang(_: Any) -> bool:
        reached.set()
        released.wait(20)
        return True

    far.fail("a.tar", hang)
    command = [sys.executable, "-m", "fastdeit", "fetch", f"{far.address}/{{b,a}}.tar"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [*command, str(tmp_path / "out"), "--num-workers", "1"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=ROOT,
    ) as process:
        assert reached.wait(30)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=20)
        released.set()
    assert process.returncode == 130
    assert error.splitlines() == [
        f"interrupted; the same command continues with {far.address}/{{b,a}}.tar"
    ]
    assert read_folder(tmp_path / "out").keys() == {"b.tar"}
