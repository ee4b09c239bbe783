"""The process that writes the report of a run while it trains:
`python -m fastdeit.report.child RUN PARENT`.

It has the lowest priority, and ends by itself after `LIMIT_S` and with its parent, the process of
number PARENT. It reads only the run folder, and sees neither a GPU nor the other ranks.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO

from fastdeit.distributed.environment import make_child_environment
from fastdeit.reliability.launcher import die_with_parent
from fastdeit.storage.run_folder import RunFolder

LIMIT_S = 600
"""Seconds that the process may take."""

_NICE = 19


def start_child(folder: RunFolder, errors: IO[bytes]) -> subprocess.Popen[bytes]:
    """Start the process; errors: gets what it prints. Raises OSError."""
    return subprocess.Popen(
        [sys.executable, "-m", "fastdeit.report.child", str(folder), str(os.getpid())],
        env=make_child_environment() | {"OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        stdout=errors,
        stderr=errors,
        start_new_session=True,  # a Ctrl-C in the terminal is not for it
    )


def main(path: str, parent: str) -> None:
    """Write the report of the run in a folder."""
    os.nice(_NICE)
    signal.alarm(LIMIT_S)  # SIGALRM ends a process that does not take it
    die_with_parent(signal.SIGKILL)  # a stopped process takes no other
    if os.getppid() != int(parent):
        return
    from fastdeit.report.build import write_report

    folder = RunFolder(Path(path))
    try:
        write_report([folder.path], folder.report)
    except (OSError, ValueError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(*sys.argv[1:])
