"""One-line errors: what ends a command, printed once among all ranks."""

import contextlib
import os
import socket
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Ends the process with code 2 and one line on stderr for a ValueError or a missing file
    inside.

    What all ranks find, rank 0 says; what one of the others finds alone, that one says, and ends at
    once: the launcher then ends the others.
    """
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        if os.environ.get("WORLD_SIZE", "1") == "1":
            print(f"fastdeit: error: {error}", file=sys.stderr)
        else:
            _say_among_ranks(error)
        sys.exit(2)


def _say_among_ranks(error: Exception) -> None:
    from fastdeit.distributed.exits import exit_alone, rank0_reports_error  # torch imports slowly

    rank = int(os.environ["RANK"])
    if not rank0_reports_error():
        where = f" on rank {rank} ({socket.gethostname()})" if rank else ""
        print(f"fastdeit: error{where}: {error}", file=sys.stderr)
        if rank:
            exit_alone(2)
