"""A launcher that has ended is missed, also by a rank that was not there yet, and whatever stood
between them."""

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

ROOT = Path(__file__).parents[2]
LOOK = "from fastdeit.reliability.launcher import LAUNCHER; print('gone' if LAUNCHER.has_died() else 'there', flush=True)"
SLOW_TO_LOOK = f"import time; print('began', flush=True); time.sleep(1.5); {LOOK}"
LOOK_TWICE = f"import time; {LOOK}; time.sleep(1.5); {LOOK.split('; ')[1]}"
RUNNER, LAUNCH, SSHD = (
    "deepspeed_runner.py",
    "deepspeed.launcher.launch.py",
    "sshd: root@notty",
)  # names are what is looked at


@contextlib.contextmanager
def chain(
    folder: Path, names: list[str], rank: str, wait_s: float = 0, through: list[str] | None = None
) -> Iterator[Path]:
    """Processes of which each starts the next, launch.py after `wait_s` and by the words `through`;
    the last is the rank.

    Gives the file of what they say; the process id of the first is in `folder / "first"`.
    """
    command = [sys.executable, "-c", rank]
    for name in reversed(names):
        script = folder / name
        wait = f"time.sleep({wait_s if name == LAUNCH else 0})"
        script.write_text(
            f"import subprocess, time; print('began', flush=True); {wait}; subprocess.run({command!r})"
        )
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


def until(log: Path, said: list[str]) -> None:
    for _ in range(150):
        if log.read_text().split() == said:
            return
        time.sleep(0.1)
    raise AssertionError(log.read_text())


def kill_first(log: Path) -> None:
    os.kill(int(log.with_name("first").read_text()), signal.SIGKILL)


@pytest.mark.parametrize("names", [[RUNNER, LAUNCH], [LAUNCH]])
def test_a_launcher_that_ended_before_the_rank_looked(names: list[str], tmp_path: Path) -> None:
    """The runner while launch.py starts, or launch.py while its rank does."""
    with chain(tmp_path, names, SLOW_TO_LOOK, wait_s=1.5 if RUNNER in names else 0) as log:
        until(log, ["began"] * 2)
        kill_first(log)
        until(log, ["began"] * (len(names) + 1) + ["gone"])


def test_a_launcher_that_lives_is_not_missed(tmp_path: Path) -> None:
    for names in ([RUNNER, LAUNCH], [LAUNCH]):
        with chain(tmp_path, names, LOOK) as log:
            until(log, ["began"] * len(names) + ["there"])


@pytest.mark.parametrize(
    "through", [[], ["bash", "-c", '"$@"; true', "a shell that names deepspeed"]]
)
def test_the_end_of_the_connection_over_which_another_machine_started_it(
    through: list[str], tmp_path: Path
) -> None:
    with chain(tmp_path, [SSHD, LAUNCH], LOOK_TWICE, through=through) as log:
        until(log, ["began", "began", "there"])
        kill_first(log)
        until(log, ["began", "began", "there", "gone"])
