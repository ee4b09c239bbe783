"""docs/fastdeit.sbatch: where the ranks are, and which jobs are requeued; under substitutes for
Slurm's commands. tests/distributed/test_slurm.py has a real Slurm."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.support.launching import ROOT
from tests.support.sbatch import submit

pytestmark = pytest.mark.usefixtures("kill_launched_runs")
TASK = """#!/bin/bash
trap 'echo usr1; exit ${AFTER:-0}' USR1
echo "$RANK of $WORLD_SIZE, $LOCAL_RANK of $LOCAL_SIZE at $MASTER_ADDR:$MASTER_PORT: $*"
for _ in $(seq 200); do [ "$AFTER" = end ] || sleep 0.1; done
"""


@pytest.mark.parametrize(
    ("after", "code", "again"), [("0", 0, True), ("3", 3, False), ("end", 0, False)]
)
def test_slurm_script_places_ranks_and_requeues_stopped_runs_only(
    after: str, code: int, again: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AFTER", after)
    job = submit(tmp_path, ["--recipe", "a b"], TASK)
    assert job.stdout is not None
    said = {job.stdout.readline().split(" at ")[0] for _ in range(2)}
    assert said == {"0 of 2, 0 of 2", "1 of 2, 1 of 2"}
    if after != "end":
        job.send_signal(signal.SIGUSR1)
    rest = job.communicate(timeout=20)[0]
    assert job.returncode == code, rest
    assert ("queued again" in rest) == again and rest.count("usr1") == (0 if after == "end" else 2)


@pytest.mark.parametrize(
    ("job", "code", "again"),
    [
        ("JobState=RUNNING PreemptTime=2026-11-29T01:56:27", 0, True),
        ("JobState=RUNNING PreemptTime=2026-11-29T01:56:27", 143, True),
        ("JobState=RUNNING PreemptTime=2026-11-29T01:56:27", 2, False),
        ("JobState=COMPLETING PreemptTime=2026-11-29T01:56:27", 0, False),
        ("JobState=RUNNING PreemptTime=None", 143, False),
    ],
    ids=["saved", "ended while it started", "failed", "cancelled or requeued by Slurm", "killed"],
)
def test_job_in_its_grace_time_is_requeued_unless_its_run_failed(
    job: str, code: int, again: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JOB", job)
    script = submit(tmp_path, [], f"#!/bin/bash\nexit {code}\n")
    said = script.communicate(timeout=20)[0]
    assert ("queued again" in said) == again and script.returncode == (0 if again else code), said


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({}, "SLURM_JOB_ID: is not set: submit this script with sbatch"),
        ({"SLURM_JOB_ID": "7"}, "SLURM_NTASKS_PER_NODE: is not set: give --ntasks-per-node"),
    ],
)
def test_script_without_slurm_says_what_is_missing(given: dict[str, str], error: str) -> None:
    inherited = {name: value for name, value in os.environ.items() if "SLURM" not in name}
    done = subprocess.run(
        ["bash", str(ROOT / "docs" / "fastdeit.sbatch")],
        env=inherited | given,
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert done.returncode != 0 and error in done.stderr
