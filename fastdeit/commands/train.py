"""`fastdeit train`: a command line becomes a run, which is resumed, trained and stopped."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from fastdeit.checkpoint.select import find_checkpoint
from fastdeit.commands.errors import one_line_errors
from fastdeit.config.cli import parse_config
from fastdeit.config.parse import parse_time_limit
from fastdeit.config.schema import Config
from fastdeit.distributed.collectives import barrier, on_every_rank, on_rank0
from fastdeit.distributed.errors import RunError
from fastdeit.distributed.world import World, init_distributed
from fastdeit.kernels.backend import use_backend
from fastdeit.reliability.launcher import Launcher
from fastdeit.reliability.run_lock import RunLock
from fastdeit.reliability.supervisor import StopAgreed, Supervisor
from fastdeit.run.build import _build_run, _facts
from fastdeit.run.folder import open_folder, write_outcome
from fastdeit.run.identity import (
    check_same_everywhere,
    check_same_run,
    check_same_samples,
)
from fastdeit.run.loop import evaluate_run, train
from fastdeit.run.preflight import check_config
from fastdeit.run.results import is_finished, say_finished
from fastdeit.run.resume import restore
from fastdeit.run.state import Run
from fastdeit.storage.run_folder import RunFolder
from fastdeit.training.build import build_deepspeed_config


def train_command(
    argv: Sequence[str], prog: str = "fastdeit train", launcher: Launcher | None = None
) -> int:
    """`fastdeit train`: 0; exit code 2 for a command line, a data set or a checkpoint that cannot
    be used; 1 for images that cannot be read in mid-run, where --bad-images or their number ends
    it."""
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
            world = init_distributed(
                max(limits.values()) + 60
            )  # the watchdog speaks before the collectives' own time-out does
            supervisor.listen()
            run = _prepare(config, recipe, world, supervisor, lock)
        try:
            return 0 if run is None else _execute(run)
        except RunError as error:
            # it may be on one rank alone: the launcher then ends the others
            supervisor.fail(error)
            if world.rank == 0 or not error.heard_by_all:
                print(f"fastdeit: error: {error}", file=sys.stderr)
            return supervisor.exit(1)


def _prepare(
    config: Config, recipe: str, world: World, supervisor: Supervisor, lock: RunLock
) -> Run | None:
    """A run ready for its next step, with nothing written yet but the lock; None if it was finished
    before."""
    folder = RunFolder(Path(config.run.output_dir))
    check_same_everywhere(config)
    on_every_rank(lambda: check_config(config, world.size))
    on_every_rank(lambda: build_deepspeed_config(config, world))
    on_rank0(lambda: check_same_run(config, folder))
    if on_rank0(lambda: is_finished(folder)):
        say_finished(config, recipe, world, folder)
        return None
    on_rank0(lock.acquire)
    run = _build_run(config, recipe, world, folder, supervisor)
    _resume(run)
    return run


def _execute(run: Run) -> int:
    """Trains from where the run stands to its end, or to where it was told to stop: 0 either way."""
    try:
        run.supervisor.check_now()
        open_folder(run)
        run.console.heading(_facts(run))
        run.mark = (time.monotonic(), run.trainer.step)
        # for evaluations and pictures; a training step sets its own
        with use_backend(run.config.run.kernels):
            train(run)
            write_outcome(run, evaluate_run(run, with_teacher=True))
        barrier()
    except StopAgreed as reason:
        _stop(run, str(reason))
    finally:
        run.console.stop()
        run.train_loader.close()
        run.val_loader.close()
        run.checkpoints.close()
        run.health.close()
        if run.log is not None:
            run.log.close()
        run.trainer.engine.destroy()
    return 0


def _stop(run: Run, reason: str) -> None:
    done = f"stopped after step {run.trainer.step} of {run.total_steps} ({reason})"
    run.console.note(f"{done}; the same command goes on from there")
    if run.world.rank == 0:
        run.folder.stop_request.unlink(missing_ok=True)
    barrier()


def _resume(run: Run) -> None:
    found = find_checkpoint(run.folder, run.config.run.resume, run.trainer.state.layout())
    if found is None:
        return
    check_same_samples(found.state, run.fingerprints, found.path)
    restore(run, found)
    run.notes += [f"passed over: {fault}" for fault in found.passed_over]
    run.notes.append(
        f"goes on from {found.path}, after step {run.trainer.step} of {run.total_steps}"
    )
    if "digest" not in found.state:
        run.notes.append(
            f"the checkpoint has no digest: that in metrics.jsonl is of the samples from step {run.trainer.step} on"
        )
    then, now = found.state.get("quarantine"), run.quarantine.fingerprint()
    if then not in (None, now):
        run.notes.append(
            "images were found damaged, or their list was removed, since then: steps may hold other samples"
        )
