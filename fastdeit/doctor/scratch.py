"""The scratch folder of the checks, which is gone at the end."""

import os
import shutil
import socket
from pathlib import Path

from fastdeit.doctor.findings import Finding, Target, good, warn


def choose_scratch(output_dir: str) -> str:
    """Return the path of a folder that does not exist, in `output_dir` or, before a first run, in
    the folder above it that exists."""
    wanted = Path(output_dir).absolute()
    home = next(place for place in (wanted, *wanted.parents) if place.is_dir())
    return str(home / f".fastdeit-doctor-{socket.gethostname()}-{os.getpid()}")


def remove_scratch(target: Target) -> Finding:
    """Remove the scratch folder."""
    folder = Path(target.scratch)
    if folder.exists():
        shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        return warn(f"{folder} cannot be removed", f"rm -r {folder}")
    return good("none")
