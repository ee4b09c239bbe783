"""Slurm on this machine alone: its own daemons with one node, in a folder, and partitions that
differ in how their jobs are pre-empted."""

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.launching import free_port

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
"""Debian: munge, slurmctld, slurmd, slurm-client."""

_CONF = """
ClusterName=trial
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
# cred_expire: a requeued job begins so many seconds later
AuthInfo=socket={folder}/munge.sock,cred_expire=5
CredType=cred/munge
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=2,bf_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=20
ReturnToService=2
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 RealMemory=1000 State=UNKNOWN
PartitionName=grace Nodes={host} PriorityTier=1 GraceTime=60 State=UP Default=YES
PartitionName=cancel Nodes={host} PriorityTier=1 GraceTime=60 PreemptMode=CANCEL State=UP
PartitionName=sudden Nodes={host} PriorityTier=1 State=UP
PartitionName=first Nodes={host} PriorityTier=9 PreemptMode=OFF State=UP
"""


@dataclass(frozen=True)
class Slurm:
    """A cluster of one node, with its files in `folder`."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def run(self, *words: str, cwd: Path | None = None) -> str:
        """Run one of Slurm's commands; return what it prints."""
        done = subprocess.run(
            words, env=self.environment, cwd=cwd, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def submit(self, folder: Path, *words: str) -> str:
        """Submit a script in a folder, with flags; return the job's number."""
        return self.run("sbatch", "--parsable", *words, cwd=folder)

    def fact(self, job: str, name: str) -> str:
        """Return a fact of a job, as `scontrol show job` names it."""
        words = self.run("scontrol", "show", "job", job).split()
        return next(word.partition("=")[2] for word in words if word.startswith(f"{name}="))

    def wait_for(self, job: str, states: tuple[str, ...], seconds: float = 60) -> str:
        """Wait until a job has one of the states; return it."""
        deadline = time.monotonic() + seconds
        while (state := self.fact(job, "JobState")) not in states:
            assert time.monotonic() < deadline, f"job {job} is {state}, not {states}"
            time.sleep(0.5)
        return state

    def fail_node(self) -> None:
        """Declare the node lost; and have it come back."""
        host = socket.gethostname().split(".")[0]
        self.run("scontrol", "update", f"nodename={host}", "state=down", "reason=trial")
        time.sleep(1)
        with contextlib.suppress(AssertionError):  # it may be back already
            self.run("scontrol", "update", f"nodename={host}", "state=resume")


def is_installed() -> bool:
    return all(shutil.which(name) for name in PROGRAMS)


@contextlib.contextmanager
def one_node(folder: Path) -> Iterator[Slurm]:
    """Start Slurm with its files in a folder; end its jobs and itself afterwards."""
    slurm = Slurm(folder)
    try:
        _start(slurm)
        yield slurm
    finally:
        with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
            slurm.run("scancel", "--user", getpass.getuser())
            time.sleep(2)
        for name in ("slurmd", "slurmctld", "munged"):
            with contextlib.suppress(OSError, ValueError):
                os.kill(int((folder / f"{name}.pid").read_text()), signal.SIGTERM)


def _start(slurm: Slurm) -> None:
    folder = slurm.folder
    for name in ("state", "spool"):
        (folder / name).mkdir()
    facts = {"host": socket.gethostname().split(".")[0], "user": getpass.getuser()}
    text = _CONF.format(folder=folder, ports=(free_port(), free_port()), **facts)
    (folder / "slurm.conf").write_text(text)
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o600)
    places = {"key-file": "key", "socket": "sock", "log-file": "log", "seed-file": "seed"}
    flags = [f"--{flag}={folder}/munge.{suffix}" for flag, suffix in places.items()]
    slurm.run("munged", "--force", f"--pid-file={folder}/munged.pid", *flags)
    for daemon in ("slurmctld", "slurmd"):
        _start_daemon(slurm, daemon)
    deadline = time.monotonic() + 30
    while "idle" not in slurm.run("sinfo", "--noheader", "--format=%T"):
        assert time.monotonic() < deadline, "the node of Slurm does not become idle"
        time.sleep(0.5)


def _start_daemon(slurm: Slurm, name: str) -> None:
    subprocess.run([name], env=slurm.environment, check=True, timeout=30)
