"""The execution of a run: built, resumed, trained and closed. It imports DALI, numba and the
training loop, so `library/training.py` imports it once the settings are checked."""

from collections.abc import Sequence
from typing import Any

from fastdeit.config.schema import Config
from fastdeit.display.terminal import note_failure
from fastdeit.distributed.collectives import barrier
from fastdeit.distributed.world import World
from fastdeit.kernels.backend import use_backend
from fastdeit.reliability.supervisor import StopAgreed, Supervisor
from fastdeit.run.build import build_run, describe_run, record_graphs
from fastdeit.run.folder import open_folder
from fastdeit.run.loop import evaluate_run, train
from fastdeit.run.results import resume_command, write_results
from fastdeit.run.resume import resume
from fastdeit.run.state import Run
from fastdeit.storage.run_folder import RunFolder
from fastdeit.tracking.callbacks import Callback, RunEnd, RunStart


def open_run(
    config: Config,
    recipe: str,
    world: World,
    folder: RunFolder,
    supervisor: Supervisor,
    callbacks: Sequence[Callback] = (),
) -> tuple[Run, list[str]]:
    """Return a run at its next step, with notes for the user. Raises ValueError for what cannot be
    used, and StopAgreed. A collective."""
    run, notes = build_run(config, recipe, world, folder, supervisor, callbacks)
    return run, notes + resume(run)


def execute_run(run: Run, notes: list[str]) -> dict[str, Any]:
    """Train a run from its step to the end, or to where it is asked to stop; return its summary, as
    `train_run`. Raises RunError."""
    done: dict[str, Any] = {}
    end = RunEnd("failed", 0)
    try:
        run.supervisor.check_now()
        notes = notes + open_folder(run) + record_graphs(run)
        facts = describe_run(run, notes)
        run.console.heading(facts)
        _start_trackers(run, facts)
        run.progress.restart_clock(run.trainer.step)
        # for evaluations and pictures; a training step sets its own
        with use_backend(run.config.run.kernels):
            train(run)
            done = {"results": evaluate_run(run, with_teacher=True)}
            write_results(run, done["results"])
        end = RunEnd("finished", run.trainer.step, results=done["results"])
        _end_together(run)
    except StopAgreed as reason:
        _stop(run, str(reason))
        done = {"stopped": str(reason)}
        end = RunEnd("stopped", run.trainer.step, str(reason))
    except BaseException as error:
        end = RunEnd("failed", run.trainer.step, f"{type(error).__name__}: {error}")
        raise
    finally:
        _close(run, end)
    return done | {"steps": run.trainer.step, "skipped": run.trainer.state.skipped}


def _start_trackers(run: Run, facts: dict[str, str]) -> None:
    start = RunStart(
        folder=run.folder.path,
        recipe=run.recipe,
        settings=run.config.to_dict(),
        facts=facts,
        step=run.trainer.step,
        total_steps=run.total_steps,
        logged_step=run.log.logged_step,
    )
    run.trackers.start(start)


def _stop(run: Run, reason: str) -> None:
    done = f"stopped after step {run.trainer.step} of {run.total_steps} ({reason})"
    run.console.stop()
    run.console.note(f"{done}; the same command resumes from there")
    _offer_resume(run)
    if run.world.rank == 0:
        run.folder.stop_request.unlink(missing_ok=True)
    run.report.finish()
    _end_together(run)


def _offer_resume(run: Run) -> None:
    with note_failure("the command that resumes", run.console.note):
        run.console.offer([resume_command(run.config, run.recipe)], "resume")


def _end_together(run: Run) -> None:
    """Wait for the other ranks; from here on the loaders end, which wait for a batch that is being
    made."""
    barrier()
    run.supervisor.beat("data", run.trainer.step)


def _close(run: Run, end: RunEnd) -> None:
    """Close everything, whatever has happened; for a failed run, print how to resume it."""
    run.console.stop()
    if end.outcome == "failed":
        _offer_resume(run)
    run.report.close()
    run.data.train_loader.close()
    run.data.val_loader.close()
    run.checkpoints.close()
    run.health.close()
    run.log.close()
    run.trackers.end(end, beat=lambda: run.supervisor.beat("data", run.trainer.step))
    run.trainer.engine.destroy()
