"""What a rank leaves behind when it fails, since the launcher's exit code does not tell which rank
was the first.

`failure-rankR.json` in the run folder; the next start moves them, oldest first, to
`failures.jsonl`.
"""

import contextlib
import json
import os
import socket
import sys
import threading
import time
import traceback
from typing import Any

from fastdeit.storage.atomic import atomic_write_text, read_bounded
from fastdeit.storage.run_folder import RunFolder

_LIMIT = 1 << 22  # bytes of a failure file: stacks of many threads


def write_failure(
    folder: RunFolder, rank: int, section: str, step: int, error: str, details: str
) -> None:
    """Tells where a rank failed, and of what; never raises: the failure itself is what matters.

    section: the last that was entered; step: optimizer steps done by then; error: one line;
    details: a traceback, or the stacks of all threads.
    """
    facts = {
        "time": time.time(),
        "rank": rank,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "section": section,
        "step": step,
        "error": error,
        "details": details,
    }
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        atomic_write_text(folder.failure(rank), json.dumps(facts, indent=1))
    except OSError as refusal:
        print(f"fastdeit: rank {rank}: no failure file: {refusal}", file=sys.stderr)


def format_exception(error: BaseException) -> tuple[str, str]:
    """An exception in one line, and its traceback."""
    line = " ".join(traceback.format_exception_only(error)[-1].split())
    return line, "".join(traceback.format_exception(error))


def stacks() -> str:
    """Where every thread of this process stands, in Python."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    frames = sys._current_frames().items()
    return "\n".join(
        f"{names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame))}"
        for ident, frame in frames
    )


def take_failures(folder: RunFolder) -> list[dict[str, Any]]:
    """The failures of the attempt before this one, oldest first; they are moved to failures.jsonl."""
    files = folder.failure_files()
    failures: list[dict[str, Any]] = []
    for file in files:
        with contextlib.suppress(ValueError):
            failures += _facts(read_bounded(file, _LIMIT))
    failures.sort(key=lambda failure: failure["time"])
    if failures:
        with folder.failures.open("a") as history:
            history.writelines(json.dumps(failure) + "\n" for failure in failures)
    for file in files:
        file.unlink()
    return failures


def _facts(text: str) -> list[dict[str, Any]]:
    """The failure in a file, if there is one. Raises ValueError for what is no JSON."""
    try:
        failure = json.loads(text)
    except RecursionError:
        return []
    told = (
        isinstance(failure, dict)
        and {"time", "rank", "host", "section", "step", "error"} <= failure.keys()
    )
    return [failure] if told and isinstance(failure["time"], int | float) else []


def format_failure(failure: dict[str, Any], folder: RunFolder) -> str:
    """A line for a person."""
    where = f"rank {failure['rank']} ({failure['host']}) after step {failure['step']}, in {failure['section']}"
    return f"the attempt before this failed first on {where}: {failure['error']} (more in {folder.failures})"
