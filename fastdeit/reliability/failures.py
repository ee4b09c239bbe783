"""Failure files, which failing ranks write into the run folder.

The launcher's exit code does not say which rank failed first. So each writes `failure-rankR.json`;
the next start of the run moves them, oldest first, to `failures.jsonl`.
"""

import contextlib
import json
import os
import socket
import sys
import threading
import time
import traceback
from dataclasses import asdict, dataclass

from fastdeit.display.terminal import Terminal
from fastdeit.display.text import printable, printable_lines
from fastdeit.storage.atomic import atomic_write_text, read_bounded
from fastdeit.storage.jsonl import append_lines, parse_record, read_records
from fastdeit.storage.run_folder import RunFolder

_LIMIT = 1 << 22  # bytes of a failure file, which holds the stacks of many threads


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Record of a rank's failure: place and cause."""

    time: float
    """The time of the failure, in seconds since 1970."""
    rank: int
    host: str
    pid: int = 0
    section: str
    """The section that the rank had entered last."""
    step: int
    """The number of optimizer steps done by then."""
    error: str
    """The error in one line."""
    details: str = ""
    """A traceback, or the stacks of all threads."""


def write_failure(
    folder: RunFolder, rank: int, section: str, step: int, error: str, details: str
) -> None:
    """Write a rank's failure file; the arguments are fields of `Failure`.

    Never raises: the failure itself is what matters.
    """
    failure = Failure(
        time=time.time(),
        rank=rank,
        host=socket.gethostname(),
        pid=os.getpid(),
        section=section,
        step=step,
        error=printable(error),
        details=printable_lines(details),
    )
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        atomic_write_text(folder.failure(rank), json.dumps(asdict(failure), indent=1))
    except OSError as refusal:
        Terminal(stderr=True).say(f"fastdeit: rank {rank}: no failure file: {refusal}")


def format_exception(error: BaseException) -> tuple[str, str]:
    """Return an exception in one line, and its traceback."""
    line = " ".join(traceback.format_exception_only(error)[-1].split())
    return line, "".join(traceback.format_exception(error))


def format_stacks() -> str:
    """Return the Python stack of every thread of this process."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    frames = sys._current_frames().items()
    return "\n".join(
        f"{names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame))}"
        for ident, frame in frames
    )


def read_failures(folder: RunFolder) -> list[Failure]:
    """Return all failures of the run in a folder: of earlier attempts, then of the last one."""
    return read_records(folder.failures, Failure) + _read_last(folder)


def take_failures(folder: RunFolder) -> list[Failure]:
    """Move the failures of the last attempt to failures.jsonl and return them, oldest first."""
    failures = _read_last(folder)
    if failures:
        append_lines(folder.failures, failures)
    for file in folder.failure_files():
        file.unlink()
    return failures


def _read_last(folder: RunFolder) -> list[Failure]:
    failures: list[Failure] = []
    for file in folder.failure_files():
        with contextlib.suppress(ValueError):
            failures.append(parse_record(read_bounded(file, _LIMIT), Failure))
    return sorted(failures, key=lambda failure: failure.time)


def format_failure(failure: Failure, folder: RunFolder) -> str:
    """Return a line for the user on the first failure of the last attempt."""
    where = f"rank {failure.rank} ({failure.host}) after step {failure.step}, in {failure.section}"
    details = f"details in {folder.failures}"
    return f"the last attempt failed first on {where}: {failure.error} ({details})"
