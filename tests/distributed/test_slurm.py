"""docs/fastdeit.sbatch under a real Slurm of one node: pre-empted, out of time, cancelled, lost."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.launching import ROOT
from tests.support.slurm import Slurm, is_installed, one_node

pytestmark = pytest.mark.skipif(
    not is_installed(), reason="needs munged, slurmctld, slurmd and sbatch"
)

# a run: a step each 0.2 s; asked to stop it saves for a second
TASK = """#!/bin/bash
[ -z "$STARTING" ] || { echo starting; exec sleep $STARTING; }
step=$(cat steps 2>/dev/null || echo 0)
stop() {
    sleep 1
    [ "$RANK" != 0 ] || { echo $step >steps; echo "stopped after step $step of 1000 ($1)"; }
    exit ${STOP_CODE:-0}
}
trap 'stop SIGTERM' TERM
trap 'stop SIGUSR1' USR1
[ "$RANK" != 0 ] || echo "start at $step of $WORLD_SIZE with $*"
for _ in $(seq ${STEPS:-500}); do sleep 0.2; [ -n "$STUCK" ] || step=$((step + 1)); done
[ "$RANK" != 0 ] || echo finished
exit ${CODE:-0}
"""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    with one_node(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


@pytest.fixture
def submit(slurm: Slurm, tmp_path: Path) -> Callable[..., str]:
    """Submit the script with flags of sbatch; its run is TASK."""
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(TASK)
    python.chmod(0o755)

    def submit(*words: str, **settings: str) -> str:
        small = ("--nodes=1", "--gpus-per-node=0", "--ntasks-per-node=2", "--cpus-per-task=1")
        exported = ",".join(["ALL", *(f"{name}={value}" for name, value in settings.items())])
        flags = (*small, "--output=log", f"--export={exported}", *words)
        return slurm.submit(tmp_path, *flags, str(ROOT / "docs" / "fastdeit.sbatch"), "--epochs=9")

    return submit


def wait_for_text(log: Path, text: str, times: int = 1, seconds: float = 45) -> str:
    """Wait until a log has a text so often; return the log."""
    deadline = time.monotonic() + seconds
    while (found := log.read_text() if log.exists() else "").count(text) < times:
        assert time.monotonic() < deadline, f"{text!r} is not {times} times in {found}"
        time.sleep(0.5)
    return found


def preempt(slurm: Slurm, folder: Path) -> str:
    """Submit a job that needs the whole node at once, for five seconds; return its number."""
    words = ("--partition=first", "--ntasks=4", "--output=other", "--wrap=sleep 5")
    return slurm.submit(folder, *words)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("partition", "count"), [("grace", 1), ("cancel", 1), ("sudden", 0)], ids=str
)
def test_pre_empted_job_saves_and_is_queued_once(
    partition: str, count: int, slurm: Slurm, submit: Callable[..., str], tmp_path: Path
) -> None:
    """count: how often the script requeues it; without a grace time Slurm does."""
    job = submit(f"--partition={partition}")
    wait_for_text(tmp_path / "log", "start at 0 of 2 with -u fastdeit/train.py --epochs=9")
    time.sleep(1)
    other = preempt(slurm, tmp_path)
    wait_for_text(tmp_path / "log", "(SIGTERM)")
    slurm.wait_for(other, ("COMPLETED",))
    log = wait_for_text(tmp_path / "log", "start at", 2)
    assert "start at 0" not in log.partition("(SIGTERM)")[2]
    assert log.count("\nrequeued: stopped after step") == count, log
    assert slurm.fact(job, "Restarts") == "1"
    slurm.run("scancel", job)
    slurm.wait_for(job, ("CANCELLED",))


@pytest.mark.slow
def test_job_at_its_time_limit_is_queued_again(
    slurm: Slurm, submit: Callable[..., str], tmp_path: Path
) -> None:
    job = submit("--time=1", "--signal=B:USR1@50")
    log = wait_for_text(tmp_path / "log", "start at", 2, 120)
    assert "(SIGUSR1)" in log and "requeued: stopped after step" in log
    slurm.run("scancel", job)
    assert slurm.wait_for(job, ("CANCELLED",)) and slurm.fact(job, "Restarts") == "1"


@pytest.mark.slow
def test_cancelled_job_saves_and_is_not_queued_again(
    slurm: Slurm, submit: Callable[..., str], tmp_path: Path
) -> None:
    job = submit()
    wait_for_text(tmp_path / "log", "start at")
    slurm.run("scancel", job)
    assert slurm.wait_for(job, ("CANCELLED",))
    log = wait_for_text(tmp_path / "log", "(SIGTERM)")
    time.sleep(8)
    assert slurm.fact(job, "JobState") == "CANCELLED" and "requeued" not in log


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "state", "code"),
    [({"STEPS": "2"}, "COMPLETED", "0:0"), ({"STEPS": "2", "CODE": "2"}, "FAILED", "2:0")],
    ids=["finished", "failed"],
)
def test_ended_run_is_not_queued_again(
    settings: dict[str, str], state: str, code: str, slurm: Slurm, submit: Callable[..., str]
) -> None:
    job = submit(**settings)
    assert slurm.wait_for(job, ("COMPLETED", "FAILED")) == state
    assert slurm.fact(job, "ExitCode") == code and slurm.fact(job, "Restarts") == "0"


@pytest.mark.slow
def test_job_of_a_lost_node_is_queued_by_slurm(
    slurm: Slurm, submit: Callable[..., str], tmp_path: Path
) -> None:
    job = submit()
    wait_for_text(tmp_path / "log", "start at")
    slurm.fail_node()
    log = wait_for_text(tmp_path / "log", "start at", 2, seconds=120)
    assert "requeued" not in log and slurm.fact(job, "Restarts") == "1"
    slurm.run("scancel", job)
    slurm.wait_for(job, ("CANCELLED",))


@pytest.mark.slow
def test_job_that_makes_no_step_is_queued_twice_only(
    slurm: Slurm, submit: Callable[..., str], tmp_path: Path
) -> None:
    job = f"{submit('--array=3', STUCK='yes')}_3"
    for attempt in (1, 2, 3):
        wait_for_text(tmp_path / "log", "start at", attempt)
        time.sleep(1)
        slurm.run("scancel", "--batch", "--signal=USR1", job)
    assert slurm.wait_for(job, ("FAILED", "COMPLETED")) == "FAILED"
    log = (tmp_path / "log").read_text()
    assert log.count("\nrequeued: stopped after step 0") == 2 and "\nnot requeued:" in log


@pytest.mark.slow
def test_job_that_must_not_be_requeued_ends_as_saved(
    slurm: Slurm, submit: Callable[..., str], tmp_path: Path
) -> None:
    job = submit("--no-requeue")
    wait_for_text(tmp_path / "log", "start at")
    slurm.run("scancel", "--batch", "--signal=USR1", job)
    slurm.wait_for(job, ("FAILED", "COMPLETED"))
    assert "(SIGUSR1)" in (tmp_path / "log").read_text() and slurm.fact(job, "Restarts") == "0"


@pytest.mark.slow
def test_job_pre_empted_while_its_run_starts_is_requeued(
    slurm: Slurm, submit: Callable[..., str], tmp_path: Path
) -> None:
    job = submit("--partition=grace", STARTING="60")
    wait_for_text(tmp_path / "log", "starting")
    preempt(slurm, tmp_path)
    wait_for_text(tmp_path / "log", "starting", 4)
    assert slurm.fact(job, "Restarts") == "1"
    slurm.run("scancel", job)
    slurm.wait_for(job, ("CANCELLED",))
