"""Errors that end a command with one line, printed once among all ranks."""

import contextlib
import os
import socket
import sys
from collections.abc import Iterator

from fastdeit.display.terminal import Terminal
from fastdeit.distributed.environment import is_alone


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Exit with code 2 and one line on stderr for a ValueError or a missing file in the block.

    Rank 0 prints an error that all ranks raise. A rank that raises an error alone prints it and
    exits at once; the launcher then ends the others.
    """
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        if is_alone():
            print_error(error)
        else:
            _print_once(error)
        sys.exit(2)


def print_error(error: Exception, where: str = "") -> None:
    """Print an error on stderr. where: the rank that has it, if it is not rank 0."""
    Terminal(stderr=True).say(f"fastdeit: error{where}: {error}")


def _print_once(error: Exception) -> None:
    from fastdeit.distributed.exits import exit_alone, rank0_reports_error  # torch imports slowly

    rank = int(os.environ["RANK"])
    if not rank0_reports_error():
        where = f" on rank {rank} ({socket.gethostname()})" if rank else ""
        print_error(error, where)
        if rank:
            exit_alone(2)
