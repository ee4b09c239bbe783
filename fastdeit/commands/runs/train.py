"""`fastdeit train`: start, resume and stop a run.

A mistake in the command line is reported before torch is imported, and one that the preflight finds
before DALI, numba and TensorBoard are imported.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fastdeit.commands.errors import one_line_errors, print_error
from fastdeit.commands.imports import pause_collection
from fastdeit.config.cli import check_callbacks, parse_config
from fastdeit.config.peers import list_notes
from fastdeit.distributed.errors import RunError
from fastdeit.reliability.launcher import Launcher

if TYPE_CHECKING:
    from fastdeit.library.training import Guards
    from fastdeit.run.state import Run


def train_command(
    argv: Sequence[str], prog: str = "fastdeit train", launcher: Launcher | None = None
) -> int:
    """Run `fastdeit train`; return its exit code.

    0: finished, or stopped on request. 1: the run failed because of images, the disk or numbers
    that are not finite. 2: a command line, a data set or a checkpoint that cannot be used.
    """
    with one_line_errors():
        config, recipe = parse_config(argv, prog)
        check_callbacks(config, argv)
    with pause_collection():
        from fastdeit.library.training import (
            finish_mirror,
            guard_run,
            join_ranks,
            prepare_run,
            stop_early,
        )
        from fastdeit.reliability.supervisor import StopAgreed
    with guard_run(config, launcher) as guards:
        with one_line_errors(), pause_collection():
            world = join_ranks(config)
            guards.supervisor.listen()
            try:
                prepared = prepare_run(config, recipe, world, guards)
            except StopAgreed as reason:
                stop_early(guards.mirror.folder, world, str(reason))
                return 0
        if prepared is None:
            finish_mirror(config, guards)
            return 0
        run, notes = prepared
        return _execute(run, [*list_notes(argv, config), *notes], guards)


def _execute(run: "Run", notes: list[str], guards: "Guards") -> int:
    """Train a run that is at its next step; return the exit code."""
    from fastdeit.library.execution import execute_run
    from fastdeit.library.training import finish_mirror
    from fastdeit.run.report import report_failure

    try:
        execute_run(run, notes)
        finish_mirror(run.config, guards)
        return 0
    except RunError as error:
        # it may be on one rank alone: the launcher then ends the others
        guards.supervisor.fail(error)
        if run.world.rank == 0 or not error.heard_by_all:
            print_error(error)
        report_failure(run, error, guards.mirror)
        return guards.supervisor.exit(1)
