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
from tests.support.machines import Machine

_PRELOADED = ["tests.support.preloaded"]


class Ranks:
    """`main(*args)` in `world_size` processes that can join one group; its result is the exit code.

    main: a function at the top of a module; log: a file that gets the output of all ranks;
    machines: where they run, in equal numbers, if not on this one. One rank is a process that was
    started alone.
    """

    def __init__(
        self,
        log: Path,
        main: Callable[..., int | None],
        *args: Any,
        world_size: int = 2,
        machines: Sequence[Machine] = (),
    ) -> None:
        self.log = log
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_PRELOADED)
        local_size = world_size // max(1, len(machines))
        together = {"WORLD_SIZE": str(world_size), "LOCAL_SIZE": str(local_size)}
        together["MASTER_ADDR"] = machines[0].address if machines else "127.0.0.1"
        together["MASTER_PORT"] = str(free_port())
        self.processes = []
        for rank in range(world_size):
            number, local_rank = divmod(rank, local_size)
            place = together | {"RANK": str(rank), "LOCAL_RANK": str(local_rank)}
            environment = clean_environment() | (place if world_size > 1 else {})
            machine = machines[number] if machines else None
            process = context.Process(target=_run, args=(log, environment, machine, main, args))
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
        return next((code for code in self.codes if code), 0)

    @property
    def codes(self) -> list[int]:
        """Return the exit codes of ranks that have ended, as multiprocessing has them."""
        return [process.exitcode or 0 for process in self.processes]

    @property
    def is_alive(self) -> bool:
        return any(process.is_alive() for process in self.processes)

    @property
    def output(self) -> str:
        return self.log.read_text()


def run_fastdeit(argv: Sequence[str]) -> int:
    """Run `fastdeit COMMAND ...` as a rank; a run ends with an empty report, as in conftest.py."""
    from fastdeit import __main__ as fastdeit
    from fastdeit.run import report

    report.write_report = lambda runs, output: output.touch()
    sys.argv = ["fastdeit", *argv]
    return fastdeit.main()


def train_with_faults(faults: str, argv: Sequence[str]) -> int:
    """Run `fastdeit train ...` as a rank, with faults as tests/support/faulty.py has them."""
    from tests.support import faulty  # looks for its rank and launcher

    faulty.plant_all(faults, argv)
    return faulty.train_command(argv, "faulty", faulty.ATTACHED)


def _run(
    log: Path,
    environment: dict[str, str],
    machine: Machine | None,
    main: Callable[..., int | None],
    args: Sequence[Any],
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    if machine:
        machine.enter()
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
        from fastdeit.distributed.exits import hard_exit  # imports torch

        hard_exit(code)  # gloo's threads may abort a process that ends by itself
