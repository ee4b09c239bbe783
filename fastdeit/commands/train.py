"""`fastdeit train`: start, resume and stop a run."""

from collections.abc import Sequence
from pathlib import Path

from fastdeit.commands.errors import one_line_errors, print_error
from fastdeit.config.cli import parse_config
from fastdeit.config.parse import parse_time_limit
from fastdeit.config.peers import list_notes
from fastdeit.config.schema import Config
from fastdeit.data.build import pipeline_options
from fastdeit.distributed.collectives import barrier, on_every_rank, on_rank0
from fastdeit.distributed.errors import RunError
from fastdeit.distributed.world import World, init_distributed
from fastdeit.kernels.backend import use_backend
from fastdeit.reliability.launcher import Launcher
from fastdeit.reliability.run_lock import RunLock
from fastdeit.reliability.supervisor import StopAgreed, Supervisor
from fastdeit.run.build import build_run, describe_run
from fastdeit.run.folder import open_folder
from fastdeit.run.identity import check_same_everywhere, check_same_run
from fastdeit.run.loop import evaluate_run, train
from fastdeit.run.preflight import check_config
from fastdeit.run.results import report_finished, write_results
from fastdeit.run.resume import resume
from fastdeit.run.state import Run
from fastdeit.storage.run_folder import RunFolder
from fastdeit.training.build import build_deepspeed_config

_COLLECTIVE_MARGIN_S = 60  # the watchdog acts before the collectives' own time-out


def train_command(
    argv: Sequence[str], prog: str = "fastdeit train", launcher: Launcher | None = None
) -> int:
    """Run `fastdeit train`; return its exit code.

    0: finished, or stopped on request. 1: the run failed, for images, the disk or the numbers. 2: a
    command line, a data set or a checkpoint that cannot be used.
    """
    with one_line_errors():
        config, recipe = parse_config(argv, prog)
    folder = RunFolder(Path(config.run.output_dir))
    limits = config.limits.sections()
    time_limit = parse_time_limit(config.run.time_limit)
    with (
        Supervisor(folder, limits, time_limit, launcher) as supervisor,
        RunLock(folder) as lock,
    ):
        with one_line_errors():
            world = init_distributed(max(limits.values()) + _COLLECTIVE_MARGIN_S)
            supervisor.listen()
            prepared = _prepare(config, recipe, world, supervisor, lock)
        try:
            if prepared is None:
                return 0
            run, notes = prepared
            return _execute(run, [*list_notes(argv, config), *notes])
        except RunError as error:
            # it may be on one rank alone: the launcher then ends the others
            supervisor.fail(error)
            if world.rank == 0 or not error.heard_by_all:
                print_error(error)
            return supervisor.exit(1)


def _prepare(
    config: Config, recipe: str, world: World, supervisor: Supervisor, lock: RunLock
) -> tuple[Run, list[str]] | None:
    """Return a run at its next step, with notes for the user; None if it was finished before.

    Nothing but the lock is written yet.
    """
    folder = RunFolder(Path(config.run.output_dir))
    check_same_everywhere(config)
    on_rank0(lambda: check_same_run(config, folder))
    if on_rank0(lambda: folder.is_finished):
        report_finished(config, recipe, world, folder)
        return None
    on_every_rank(lambda: check_config(config, world.size))
    # raise for what this device does not support, before the images are listed
    on_every_rank(lambda: pipeline_options(config, world))
    on_every_rank(lambda: build_deepspeed_config(config, world))
    on_rank0(lock.acquire)
    run, notes = build_run(config, recipe, world, folder, supervisor)
    return run, notes + resume(run)


def _execute(run: Run, notes: list[str]) -> int:
    """Train the run from its step to the end, or to where it is asked to stop; return 0."""
    try:
        run.supervisor.check_now()
        notes = notes + open_folder(run)
        run.console.heading(describe_run(run, notes))
        run.progress.restart_clock(run.trainer.step)
        # for evaluations and pictures; a training step sets its own
        with use_backend(run.config.run.kernels):
            train(run)
            write_results(run, evaluate_run(run, with_teacher=True))
        barrier()
    except StopAgreed as reason:
        _stop(run, str(reason))
    finally:
        _close(run)
    return 0


def _stop(run: Run, reason: str) -> None:
    done = f"stopped after step {run.trainer.step} of {run.total_steps} ({reason})"
    run.console.note(f"{done}; the same command resumes from there")
    if run.world.rank == 0:
        run.folder.stop_request.unlink(missing_ok=True)
    barrier()


def _close(run: Run) -> None:
    run.console.stop()
    run.data.train_loader.close()
    run.data.val_loader.close()
    run.checkpoints.close()
    run.health.close()
    run.log.close()
    run.trainer.engine.destroy()
