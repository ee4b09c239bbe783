"""A run that goes on from a checkpoint: at its start, or after too many bad steps in a row; and
what it leaves if it cannot."""

import time

from fastdeit.checkpoint.select import LoadedCheckpoint
from fastdeit.checkpoint.store import set_aside
from fastdeit.distributed.collectives import on_rank0
from fastdeit.reliability.health import HealthError
from fastdeit.reliability.rollbacks import write_bundle
from fastdeit.run.identity import code_digest, versions
from fastdeit.run.metrics import MetricLog
from fastdeit.run.state import Run
from fastdeit.training.trainer import Meter


def restore(run: Run, found: LoadedCheckpoint) -> None:
    """Goes on from a checkpoint. Raises ValueError as `TrainerState.load` does."""
    run.trainer.state.load(found.tensors, found.state)
    run.checkpoints.take_scores(found.state)
    run.evaluated = found.state.get("evaluated", run.trainer.step)


def truncate_logs(run: Run, step: int) -> None:
    """Logs and checkpoints as they were at `step`; what is of later ones is dropped or set aside.

    On rank 0 alone. Raises OSError.
    """
    aside = [path.name for path in set_aside(run.folder.checkpoints, step)]
    if aside:
        run.console.note(f"later checkpoints set aside, not to be found again: {', '.join(aside)}")
    if run.log is not None:
        run.log.close()
    run.log = MetricLog(run.folder, step, run.console.note)
    run.health.open(step)


def roll_back(run: Run) -> None:
    """Loads a checkpoint from before the bad steps and has the steps from there to the last of them
    passed over.

    Raises HealthError, with what shows why in the run's folder, if that was done often enough or
    there is no such checkpoint.
    """
    rollbacks, bad = run.health.rollbacks, [line["step"] for line in run.health.bad]
    run.supervisor.beat("checkpoint", run.trainer.step)
    run.checkpoints.settle()
    try:
        found = rollbacks.find(bad[0], run.config.run.max_rollbacks, run.trainer.state.layout())
        rollbacks.add(found.state["step"], bad)
        on_rank0(lambda: truncate_logs(run, found.state["step"]))
    except ValueError as refusal:
        raise HealthError(_leave_bundle(run, str(refusal))) from None
    restore(run, found)
    run.health.begin(run.trainer.step)
    run.compared = -1
    run.meter, run.mark, run.saved = Meter(), (time.monotonic(), run.trainer.step), run.trainer.step
    run.console.note(
        f"steps {bad[0]} to {bad[-1]} were bad: went back to {found.path}, passes over all steps up to {bad[-1]}"
    )


def _leave_bundle(run: Run, refusal: str) -> str:
    """Writes what shows why the run stops; says both. A collective."""
    flush_meter(run)
    first, last = (run.health.bad[place]["step"] for place in (0, -1))
    folder, command = run.folder.debug_bundle(first), f"fastdeit replay {run.folder} --step {first}"
    tensors, state = run.trainer.state.gather()
    state |= run.fingerprints | run.about(first) | run.health.state_before(state)
    report = run.health.report() | {
        "refusal": refusal,
        "replay": command,
        "world_size": run.world.size,
    }
    report |= {"config": run.config.to_dict(), "code": code_digest(), "versions": versions()}
    faults = on_rank0(lambda: write_bundle(folder, tensors, state, report))
    left = (
        f"{folder} lacks what shows why: {'; '.join(faults)}"
        if faults
        else f"{folder} shows why, and {command}"
    )
    return f"steps {first} to {last} were skipped, --max-bad-steps is {run.config.run.max_bad_steps}, and {refusal}; {left}"


def flush_meter(run: Run) -> list[dict[str, float]]:
    """Read the statistics of the steps since the last call that changed the weights; waits for the
    device."""
    return [run.health.note_applied(step, values) for step, values in run.meter.read()]
