"""`fastdeit train`: start, resume and stop a run.

A mistake in the command line is reported before torch is imported, one that the preflight finds
before DALI, numba and TensorBoard are.
"""

from collections.abc import Sequence

from fastdeit.commands.errors import one_line_errors, print_error
from fastdeit.commands.imports import pause_collection
from fastdeit.config.cli import check_callbacks, parse_config
from fastdeit.config.parse import parse_time_limit
from fastdeit.config.peers import list_notes
from fastdeit.distributed.errors import RunError
from fastdeit.reliability.launcher import Launcher
from fastdeit.storage.run_folder import RunFolder


def train_command(
    argv: Sequence[str], prog: str = "fastdeit train", launcher: Launcher | None = None
) -> int:
    """Run `fastdeit train`; return its exit code.

    0: finished, or stopped on request. 1: the run failed, for images, the disk or the numbers. 2: a
    command line, a data set or a checkpoint that cannot be used.
    """
    with one_line_errors():
        config, recipe = parse_config(argv, prog)
        check_callbacks(config, argv)
    with pause_collection():
        from fastdeit.library.training import finish_mirror, join_ranks, prepare_run, stop_early
        from fastdeit.mirror.mirror import RunMirror
        from fastdeit.reliability.run_lock import RunLock
        from fastdeit.reliability.supervisor import StopAgreed, Supervisor
    folder = RunFolder.of(config.run.output_dir)
    limits = config.limits.sections()
    time_limit = parse_time_limit(config.run.time_limit)
    with (
        Supervisor(folder, limits, time_limit, launcher) as supervisor,
        RunLock(folder) as lock,
        RunMirror(config.run.output_dir) as mirror,
    ):
        with one_line_errors(), pause_collection():
            world = join_ranks(config)
            supervisor.listen()
            try:
                prepared = prepare_run(config, recipe, world, supervisor, lock, mirror)
            except StopAgreed as reason:
                stop_early(folder, world, str(reason))
                return 0
        if prepared is None:
            mirror.finish(limits["checkpoint"])
            return 0
        from fastdeit.library.execution import execute_run
        from fastdeit.run.report import report_failure

        run, notes = prepared
        try:
            execute_run(run, [*list_notes(argv, config), *notes])
            finish_mirror(mirror, supervisor, limits["checkpoint"])
            return 0
        except RunError as error:
            # it may be on one rank alone: the launcher then ends the others
            supervisor.fail(error)
            if world.rank == 0 or not error.heard_by_all:
                print_error(error)
            report_failure(run, error, mirror)
            return supervisor.exit(1)
