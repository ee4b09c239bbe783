"""One run of a trainer in its own process: the resources that it used, and its accuracy."""

import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks.official.commands import make_environment


class Usage(NamedTuple):
    """The resources of a process and of the children that it waited for."""

    cpu_s: float
    wall_s: float


def run_command(command: list[str], output: Path) -> Usage:
    """Run a trainer with a new output folder, write its printed output beside that, and return the
    resources that it used.

    Raises RuntimeError, with the last lines of its output, if it fails.
    """
    shutil.rmtree(output, ignore_errors=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    log = output.with_suffix(".log")
    start = time.monotonic()
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=make_environment())
        _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        last = log.read_text(encoding="utf-8", errors="replace").splitlines()[-5:]
        raise RuntimeError("\n".join([f"{log}: exit code {process.returncode}", *last]))
    return Usage(used.ru_utime + used.ru_stime, time.monotonic() - start)


def read_deit_top1(output: Path) -> float:
    """Return the top-1 of the last line of deit's log.txt, of both heads, in percent."""
    lines = (output / "log.txt").read_text(encoding="utf-8").splitlines()
    return float(json.loads(lines[-1])["test_acc1"])


def read_our_top1(output: Path) -> float:
    """Return the top-1 of both heads, or of the only one, at the end of our run, in percent."""
    summary = json.loads((output / "summary.json").read_text(encoding="utf-8"))
    return float(summary["results"]["model/both/top1"])
