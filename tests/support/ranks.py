"""Ranks of a run without the cost of their imports: children of a preloaded fork server.

The imports of one rank take about 3 CPU seconds, those of DeepSpeed's launcher 3 more; a child of
the fork server starts at once. A test whose subject is the launcher uses `support/launching.py`.
"""

import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.support.launching import clean_environment, free_port

_PRELOADED = ["tests.support.preloaded"]


class Ranks:
    """`main(*args)` in `world_size` processes that can join one group; its result is the exit code.

    main: a function at the top of a module; log: a file that
    gets the output of all ranks. One rank is a process that was started alone.
    """

    def __init__(
        self, log: Path, main: Callable[..., int | None], *args: Any, world_size: int = 2
    ) -> None:
        self.log = log
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_PRELOADED)
        together = {"WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1"}
        together["MASTER_PORT"] = str(free_port())
        self.processes = []
        for rank in range(world_size):
            place = together | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            environment = clean_environment() | (place if world_size > 1 else {})
            process = context.Process(target=_run, args=(log, environment, main, args))
            process.start()
            self.processes.append(process)

    def kill(self) -> None:
        """Send SIGKILL to every rank and wait for its end."""
        for process in self.processes:
            process.kill()
            process.join()

    def wait(self, timeout_s: float = 200) -> int:
        """Return 0 if every rank ended well, else the first other exit code.

        Raise TimeoutError, with the ranks killed, if they take longer.
        """
        deadline = time.monotonic() + timeout_s
        for process in self.processes:
            process.join(max(0, deadline - time.monotonic()))
            if process.is_alive():
                self.kill()
                raise TimeoutError(self.output)
        codes = [process.exitcode or 0 for process in self.processes]
        return next((code for code in codes if code), 0)

    @property
    def is_alive(self) -> bool:
        return any(process.is_alive() for process in self.processes)

    @property
    def output(self) -> str:
        return self.log.read_text()


def run_fastdeit(argv: Sequence[str]) -> int:
    """Run `fastdeit COMMAND ...` as a rank."""
    from fastdeit import __main__ as fastdeit

    sys.argv = ["fastdeit", *argv]
    return fastdeit.main()


def _run(
    log: Path, environment: dict[str, str], main: Callable[..., int | None], args: Sequence[Any]
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a fork server ignores it
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    code: Any = 1
    try:
        code = main(*args) or 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # gloo's threads may abort a process that ends by itself
