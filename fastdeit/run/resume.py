"""Restoring a run from a checkpoint, at start-up or as a rollback, and the debug bundle written
when a rollback is not possible."""

from typing import Any

from fastdeit.checkpoint.select import LoadedCheckpoint, find_checkpoint
from fastdeit.checkpoint.store import set_aside
from fastdeit.config.changes import FORM, list_changes, read_settings
from fastdeit.config.flags import format_replay_command
from fastdeit.config.parse import require
from fastdeit.distributed.collectives import on_rank0
from fastdeit.distributed.versions import versions
from fastdeit.models.sources import find_run
from fastdeit.reliability.health import HealthError
from fastdeit.reliability.rollbacks import write_bundle
from fastdeit.report.predictions import remove_later
from fastdeit.run.identity import code_digest
from fastdeit.run.inputs import (
    STEP_COUNT,
    Inputs,
    check_same_inputs,
    check_same_samples,
    describe_checkpoint,
    keep_facts,
    list_changed_inputs,
    read_inputs,
    take_inputs,
)
from fastdeit.run.state import Run


def resume(run: Run) -> list[str]:
    """Restore the checkpoint that --resume names, or the newest whole one of the run's folder.

    With a checkpoint of another run, a new run begins, whose settings may differ. Return notes for
    the user; none if there is no checkpoint. Raise ValueError unless it fits this run. A
    collective.
    """
    found = find_checkpoint(run.folder, run.config.checkpoint.resume, run.trainer.state.layout())
    recorded = on_rank0(lambda: read_inputs(run.folder))
    if found is None:
        return check_same_inputs(recorded, run.inputs, run.folder.inputs) if recorded else []
    recorded = take_inputs(found.state, found.path) or recorded
    is_own = run.folder.holds(found.path)
    check = _check_own if is_own else _check_other_run
    notes = check(run, found, recorded)
    run.progress.last_evaluated_step = _restore(run, found)
    notes += _compare_initial_weights(run, recorded) if is_own else _begin_lineage(run, found)
    notes += [f"checkpoint skipped: {fault}" for fault in found.damaged]
    notes.append(f"resumed from {found.path}, after step {run.trainer.step} of {run.total_steps}")
    if "digest" not in found.state:
        step = run.trainer.step
        notes.append(
            f"the checkpoint has no digest: metrics.jsonl counts samples from step {step} only"
        )
    if found.state.get("quarantine") not in (None, run.data.quarantine.fingerprint()):
        notes.append(
            "the list of damaged images has changed since the checkpoint: "
            "steps may hold other samples"
        )
    return notes


def _check_own(run: Run, found: LoadedCheckpoint, recorded: Inputs) -> list[str]:
    """Raise ValueError unless samples, teacher and --finetune are those of the run's checkpoint;
    return notes."""
    samples = run.inputs["samples"]
    check_same_samples(found.state, samples, samples.keys(), found.path)
    notes = check_same_inputs(recorded, run.inputs, found.path)
    keep_facts(recorded, run.inputs)
    return notes


def _check_other_run(run: Run, found: LoadedCheckpoint, recorded: Inputs) -> list[str]:
    """Raise ValueError unless a step of this run counts the same images as one of the run that
    saved the checkpoint; return notes on other inputs. Settings may differ."""
    try:
        check_same_samples(found.state, run.inputs["samples"], STEP_COUNT, found.path)
    except ValueError as error:
        advice = f"--finetune {found.path} begins with its weights alone"
        raise ValueError(f"{error}; {advice}") from None
    step = found.state["step"]
    left = run.total_steps - step
    epochs = step / run.steps_per_epoch
    allowed = f"more than {epochs:g}, the epoch of the checkpoint {found.path}"
    require(left > 0, "epochs", run.config.optim.epochs, allowed)
    changed = list_changed_inputs(recorded, run.inputs, ("samples", "teacher", "teacher output"))
    return [f"{line}: from step {step} on" for line in changed]


def _begin_lineage(run: Run, found: LoadedCheckpoint) -> list[str]:
    """Record that the run begins from a checkpoint of another run, and the settings that differ;
    return these as a note."""
    before = take_inputs(found.state, found.path).get("initial weights") or {}
    parent = find_run(found.path)
    changed = []
    if parent is not None:
        then = read_settings(parent.config, "--resume")
        changed = list_changes(then, run.config, FORM | {"resume"})
    origin = describe_checkpoint(found.path)
    lineage = [*before.get("lineage", []), origin | {"changed": changed}]
    run.inputs["initial weights"] = origin | {"lineage": lineage}
    return [f"other settings than in {parent}: {'; '.join(changed)}"] if changed else []


def _compare_initial_weights(run: Run, recorded: Inputs) -> list[str]:
    """Set the initial weights in the run's inputs to those that the run began with; return a note
    if this process would build others."""
    built = run.inputs["initial weights"]
    first = recorded.get("initial weights")
    run.inputs["initial weights"] = first
    if first is None or first == built or first.get("path") != built["path"]:
        return []
    cause = "other versions of torch, timm or fastdeit than when the run began"
    return [f"a replay from step 0 would begin with other initial weights: {cause}"]


def _restore(run: Run, found: LoadedCheckpoint) -> int:
    """Load a checkpoint into the trainer; return the step of the last evaluation before it.

    Raise ValueError as `TrainerState.load` does.
    """
    run.trainer.state.load(found.tensors, found.state)
    run.checkpoints.restore_scores(found.state)
    run.progress.last_logged_step = run.trainer.step
    return found.state.get("evaluated", run.trainer.step)


def truncate_logs(run: Run, step: int) -> None:
    """Make logs, predictions, checkpoints and weights those of a run at `step`: drop what is later,
    and rename later checkpoints.

    On rank 0 alone. Raise OSError.
    """
    aside = [path.name for path in set_aside(run.folder.checkpoints, step)]
    if aside:
        run.console.note(f"later checkpoints were renamed: {', '.join(aside)}")
    for line in run.checkpoints.update_weights():
        run.console.note(line)
    remove_later(run.folder.predictions, step)
    run.log.open(step)
    run.health.open(step)


def roll_back(run: Run) -> None:
    """Restore a checkpoint from before the bad steps in a row, and record that the run skips all
    steps from it to the last bad one.

    Raise HealthError, with a debug bundle in the run's folder, if --max-rollbacks is used up or
    there is no such checkpoint. A collective.
    """
    rollbacks = run.health.rollbacks
    bad = [record.step for record in run.health.bad]
    run.supervisor.beat("checkpoint", run.trainer.step)
    run.checkpoints.finish()
    try:
        found = rollbacks.find(bad[0], run.config.health.max_rollbacks, run.trainer.state.layout())
        rollbacks.add(found.state["step"], bad)
        on_rank0(lambda: truncate_logs(run, found.state["step"]))
    except ValueError as refusal:
        raise HealthError(_write_bundle(run, str(refusal))) from None
    last_evaluated_step = _restore(run, found)
    run.health.begin(run.trainer.step)
    run.progress.restart(run.trainer.step, last_evaluated_step)
    run.console.note(
        f"steps {bad[0]} to {bad[-1]} were bad: "
        f"rolled back to {found.path}, skipping all steps up to {bad[-1]}"
    )


def _write_bundle(run: Run, reason: str) -> str:
    """Write the debug bundle of the bad steps in a row; return the message that the run ends with.

    reason: why the run cannot roll back. A collective.
    """
    first = run.health.bad[0].step
    last = run.health.bad[-1].step
    folder = run.folder.debug_bundle(first)
    command = format_replay_command(run.config, str(run.folder), first)
    tensors, state = run.trainer.state.gather()
    state |= run.describe(first) | run.health.state_before(state)
    report = _describe_stop(run, reason, command)
    faults = on_rank0(lambda: write_bundle(folder, tensors, state, report))
    hint = (
        f"{folder} is incomplete: {'; '.join(faults)}" if faults else f"see {folder}, and {command}"
    )
    limit = run.config.health.max_bad_steps
    return f"steps {first} to {last} were skipped, --max-bad-steps is {limit}, and {reason}; {hint}"


def _describe_stop(run: Run, reason: str, command: str) -> dict[str, Any]:
    """Return the content of report.json of a debug bundle."""
    return run.health.report() | {
        "refusal": reason,
        "replay": command,
        "world_size": run.world.size,
        "config": run.config.to_dict(),
        "code": code_digest(),
        "versions": versions(),
    }
