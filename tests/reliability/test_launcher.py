"""`launcher.attach`: the death of the launcher, before or after the rank attaches, and whatever
stands between them."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.launching import ROOT

ATTACH = "from fastdeit.reliability import launcher; attached = launcher.attach()"
REPORT = "print('dead' if attached.has_died() else 'alive', flush=True)"
ATTACH_LATE = f"import time; print('began', flush=True); time.sleep(1.5); {ATTACH}; {REPORT}"
REPORT_TWICE = f"import time; {ATTACH}; {REPORT}; time.sleep(1.5); {REPORT}"
# `Launcher` recognises a process by its name
RUNNER, LAUNCH, SSHD = "deepspeed_runner.py", "deepspeed.launcher.launch.py", "sshd: root@notty"


@contextlib.contextmanager
def chain(
    folder: Path, names: list[str], rank: str, wait_s: float = 0, through: list[str] | None = None
) -> Iterator[Path]:
    """Start processes of which each starts the next; the last one is the rank.

    launch.py is started after `wait_s` and through the command `through`.

    Yield the file of their output; `folder / "first"` holds the process id of the first.
    """
    command = [sys.executable, "-c", rank]
    for name in reversed(names):
        script = folder / name
        wait = f"time.sleep({wait_s if name == LAUNCH else 0})"
        start = f"print('began', flush=True); {wait}; subprocess.run({command!r})"
        script.write_text(f"import subprocess, time; {start}")
        command = [sys.executable, str(script)]
        if name == SSHD:
            command = ["bash", "-c", 'exec -a "$0" "$@"', name, *command]
        if name == LAUNCH and through:
            command = [*through, *command]
    log = folder / "log"
    environment = os.environ | {"RANK": "0", "CROSS_RANK": "0", "PYTHONPATH": str(ROOT)}
    with log.open("w") as file:
        first = subprocess.Popen(
            command, stdout=file, stderr=file, env=environment, start_new_session=True
        )
    (folder / "first").write_text(str(first.pid))
    try:
        yield log
    finally:
        first.kill()
        first.wait()
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if os.getsid(process.pid) == first.pid:
                    process.kill()


def wait_for_output(log: Path, words: list[str]) -> None:
    for _ in range(150):
        if log.read_text().split() == words:
            return
        time.sleep(0.1)
    raise AssertionError(log.read_text())


def kill_first(log: Path) -> None:
    os.kill(int(log.with_name("first").read_text()), signal.SIGKILL)


@pytest.mark.parametrize("names", [[RUNNER, LAUNCH], [LAUNCH]])
def test_launcher_that_died_before_attach_is_dead(names: list[str], tmp_path: Path) -> None:
    """The runner dies while launch.py starts, or launch.py while its rank starts."""
    with chain(tmp_path, names, ATTACH_LATE, wait_s=1.5 if RUNNER in names else 0) as log:
        wait_for_output(log, ["began"] * 2)
        kill_first(log)
        wait_for_output(log, ["began"] * (len(names) + 1) + ["dead"])


def test_live_launcher_is_alive(tmp_path: Path) -> None:
    for names in ([RUNNER, LAUNCH], [LAUNCH]):
        with chain(tmp_path, names, f"{ATTACH}; {REPORT}") as log:
            wait_for_output(log, ["began"] * len(names) + ["alive"])


@pytest.mark.parametrize(
    "through", [[], ["bash", "-c", '"$@"; true', "a shell that names deepspeed"]]
)
def test_lost_ssh_connection_of_another_machine_is_seen(through: list[str], tmp_path: Path) -> None:
    with chain(tmp_path, [SSHD, LAUNCH], REPORT_TWICE, through=through) as log:
        wait_for_output(log, ["began", "began", "alive"])
        kill_first(log)
        wait_for_output(log, ["began", "began", "alive", "dead"])


@pytest.mark.parametrize(("first", "expected"), [(RUNNER, "dead"), ("shell.py", "alive")])
def test_death_of_the_runner_is_seen_and_that_of_a_shell_is_ignored(
    first: str, expected: str, tmp_path: Path
) -> None:
    with chain(tmp_path, [first, LAUNCH], REPORT_TWICE) as log:
        wait_for_output(log, ["began", "began", "alive"])
        kill_first(log)
        wait_for_output(log, ["began", "began", "alive", expected])


def test_import_changes_nothing_and_without_rank_there_is_no_launcher() -> None:
    """PR_GET_PDEATHSIG (2) shows whether the system sends a signal when the parent ends."""
    code = """
import ctypes, os
from fastdeit.reliability import launcher, supervisor
signal = ctypes.c_int()
ctypes.CDLL(None).prctl(2, ctypes.byref(signal))
print(signal.value, flush=True)
for rank in ({}, {"RANK": "0"}):
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        continue
    os.environ.update(rank)
    attached = launcher.attach()
    ctypes.CDLL(None).prctl(2, ctypes.byref(signal))
    print(signal.value, attached is None, flush=True)
    os._exit(0)
"""
    environment = {name: value for name, value in os.environ.items() if name != "RANK"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=ROOT
    )
    assert done.stdout.split() == ["0", "0", "True", "15", "False"], done.stderr
