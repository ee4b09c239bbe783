"""The lock of a run folder: one live run, free after its death, nothing left behind."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from fastdeit.reliability import run_lock
from fastdeit.reliability.run_lock import RunLock
from fastdeit.storage.run_folder import RunFolder
from tests.support.launching import ROOT

HOLD = """
import sys
from pathlib import Path
from fastdeit.reliability.run_lock import RunLock
from fastdeit.storage.run_folder import RunFolder
RunLock(RunFolder(Path(sys.argv[1]))).acquire()
print("held", flush=True)
sys.stdin.read()
"""


def hold(folder: Path) -> subprocess.Popen[str]:
    """Another process that holds the lock until its input ends, or it is killed."""
    command = [sys.executable, "-c", HOLD, str(folder)]
    holder = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    return holder


def no_locks(*_: object) -> None:
    raise OSError(errno.ENOLCK, "no locks here")


def test_empty_folder_is_removed_on_release(tmp_path: Path) -> None:
    with RunLock(RunFolder(tmp_path / "a" / "b")) as lock:
        lock.acquire()
        holder = json.loads((tmp_path / "a/b/lock").read_text())
        assert holder["pid"] == os.getpid()
    assert not (tmp_path / "a").exists()
    with RunLock(RunFolder(tmp_path / "a" / "b")) as lock:
        lock.acquire()
        (tmp_path / "a/b/config.yaml").touch()
    assert [path.name for path in (tmp_path / "a/b").iterdir()] == ["config.yaml"]


def test_release_without_acquire_removes_nothing(tmp_path: Path) -> None:
    with RunLock(RunFolder(tmp_path)) as lock:
        lock.acquire()
        with (
            RunLock(RunFolder(tmp_path)) as other,
            pytest.raises(ValueError, match=f"is in use by process {os.getpid()} on"),
        ):
            other.acquire()
        assert (tmp_path / "lock").exists()


@pytest.mark.parametrize("locks", [True, False])
def test_lock_is_refused_while_its_holder_lives_and_free_after_its_death(
    locks: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not locks:
        monkeypatch.setattr(fcntl, "flock", no_locks)
    holder = hold(tmp_path)
    with RunLock(RunFolder(tmp_path)) as lock:
        with pytest.raises(
            ValueError, match=rf"in use by process {holder.pid} on .*touch {tmp_path}/stop"
        ):
            lock.acquire()
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        lock.acquire()
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
    assert not (tmp_path / "lock").exists()


@pytest.mark.parametrize(
    ("change", "taken"),
    [
        ({"boot": "another"}, True),
        ({"started": 1.0}, True),  # another process has its number now
        ({"host": "elsewhere"}, False),
        ({"pid": 2**22 + 1}, True),
        ({}, False),
    ],
)
def test_holder_in_the_file_decides_on_a_file_system_without_locks(
    change: dict[str, object], taken: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", no_locks)
    (tmp_path / "lock").write_text(json.dumps(asdict(run_lock._this_process()) | change))
    lock = RunLock(RunFolder(tmp_path))
    if taken:
        lock.acquire()
        lock.release()
    else:
        with pytest.raises(ValueError, match="in use by process"):
            lock.acquire()


OF_ANOTHER_KIND = {
    "deep": "[" * 4096,
    "text": '{"host": "h", "pid": "x", "boot": "", "started": 1.0}',
    "no time": '{"host": "h", "pid": 1, "boot": "", "started": 1e300}',
    "no process": '{"host": "h", "pid": 1, "boot": "", "started": null}',
}


@pytest.mark.parametrize("kind", OF_ANOTHER_KIND)
def test_text_of_another_kind_names_no_holder(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", no_locks)
    (tmp_path / "lock").write_text(OF_ANOTHER_KIND[kind])
    with RunLock(RunFolder(tmp_path)) as lock:
        lock.acquire()


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"pid": 3}'])
def test_empty_lock_file_is_free(text: str, tmp_path: Path) -> None:
    (tmp_path / "lock").write_text(text)
    with RunLock(RunFolder(tmp_path)) as lock:
        lock.acquire()
