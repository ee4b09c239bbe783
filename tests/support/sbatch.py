"""docs/fastdeit.sbatch with substitutes for Slurm's commands."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.support.launching import FOREIGN, ROOT, free_port

SRUN = """
import os, signal, subprocess, sys, time
words, asked, tasks = sys.argv[1:], [], []
signal.signal(signal.SIGUSR1, lambda number, _: asked.append(number))
while words[0].startswith("--"):
    words.pop(0)
for task in range(int(os.environ["SLURM_NTASKS"])):
    local = task % int(os.environ["SLURM_NTASKS_PER_NODE"])
    place = {"SLURM_PROCID": str(task), "SLURM_LOCALID": str(local)}
    tasks.append(subprocess.Popen(words, env=os.environ | place))
while any(task.poll() is None for task in tasks):
    for number in asked:
        [task.send_signal(number) for task in tasks]
    asked.clear()
    time.sleep(0.02)
sys.exit(max(task.returncode for task in tasks))
"""
SCONTROL = """
import os, sys
job = os.environ.get("JOB", "JobState=RUNNING PreemptTime=None")
answers = {"hostnames": "127.0.0.1", "job": job}
print(answers[sys.argv[2]] if sys.argv[1] == "show" else "queued again")
"""


def submit(folder: Path, flags: Sequence[str], python: str) -> subprocess.Popen[str]:
    """docs/fastdeit.sbatch as Slurm runs it on one node with two tasks; python: what stands in for
    that of .venv."""
    (folder / "bin").mkdir(exist_ok=True)
    (folder / ".venv" / "bin").mkdir(parents=True, exist_ok=True)
    for path, text in {
        "bin/srun": f"#!{sys.executable}\n{SRUN}",
        "bin/scontrol": f"#!{sys.executable}\n{SCONTROL}",
        ".venv/bin/python": python,
    }.items():
        (folder / path).write_text(text)
        (folder / path).chmod(0o755)
    slurm = {
        "SLURM_JOB_NODELIST": "node",
        "SLURM_JOB_ID": str(free_port()),
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "2",
    }
    inherited = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    inherited |= slurm | {
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
    }
    command = ["bash", str(ROOT / "docs" / "fastdeit.sbatch"), *flags]
    return subprocess.Popen(
        command,
        cwd=folder,
        env=inherited,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
