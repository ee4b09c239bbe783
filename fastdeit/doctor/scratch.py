"""The scratch folder of the checks, which is removed at the end."""

import contextlib
import os
import secrets
import shutil
import socket
import tempfile
import threading
from pathlib import Path

from fastdeit.doctor.findings import Finding, Target, good, warn

ANSWER_S = 20.0
"""The seconds that a file system has for an answer."""


def choose_scratch(output_dir: str) -> str:
    """Return the path of a folder that does not exist, in `output_dir` or, before a first run, in
    the nearest folder above it that exists. Nobody can guess the path, as code that is compiled
    there is run."""
    wanted = Path(output_dir).absolute()
    home = next(place for place in (wanted, *wanted.parents) if place.is_dir())
    return str(home / f".fastdeit-doctor-{socket.gethostname()}-{secrets.token_hex(8)}")


def answers(path: str) -> bool:
    """Return False if the file system of a path gives no answer within `ANSWER_S`, as that of a
    dead server."""
    thread = threading.Thread(target=_look_at, args=(path,), daemon=True)
    thread.start()
    thread.join(ANSWER_S)
    return not thread.is_alive()


def _look_at(path: str) -> None:
    with contextlib.suppress(OSError):
        os.stat(path)


def open_scratch(target: Target) -> Path:
    """Return the scratch folder; create it if necessary. Raises OSError if that fails."""
    folder = Path(target.scratch)
    folder.mkdir(0o700, exist_ok=True)
    return folder


def open_any_scratch(target: Target) -> Path:
    """Return the scratch folder, or one for temporary files if it cannot be created. Raises OSError
    if that fails, too."""
    try:
        return open_scratch(target)
    except OSError:
        folder = _name_other(target)
        folder.mkdir(0o700, exist_ok=True)
        return folder


def _name_other(target: Target) -> Path:
    return Path(tempfile.gettempdir()) / Path(target.scratch).name


def remove_scratch(target: Target) -> Finding:
    """Remove the scratch folders."""
    left = []
    for folder in (Path(target.scratch), _name_other(target)):
        if folder.exists():
            shutil.rmtree(folder, ignore_errors=True)
        if folder.exists():
            left.append(str(folder))
    names = " ".join(left)
    return warn(f"{names} cannot be removed", f"rm -r {names}") if left else good("none")
