"""Comparison of what decides a loss in addition to the samples: what the run recorded, and what a
replay has."""

from dataclasses import dataclass
from typing import Any

from fastdeit.checkpoint.select import LoadedCheckpoint
from fastdeit.distributed.collectives import on_rank0
from fastdeit.replay.history import StepHistory
from fastdeit.run.inputs import (
    Inputs,
    describe_checkpoint,
    list_changed_inputs,
    list_unknown_inputs,
    name_teacher_output,
    read_inputs,
    take_inputs,
)


@dataclass(frozen=True)
class InputComparison:
    """Inputs as recorded and now; changed: a line for each that differs; unknown: a note for each
    that cannot be compared."""

    recorded: Inputs
    now: Inputs
    changed: list[str]
    unknown: list[str]

    @property
    def same(self) -> bool | None:
        """Return True if all inputs are the same; None if that is not known."""
        if self.changed:
            return False
        return None if self.unknown else True

    def describe(self) -> list[str]:
        """Return notes on all that is not the same."""
        prefix = "another input than in the run, so another loss"
        return [f"{prefix}: {line}" for line in self.changed] + self.unknown

    def to_json(self) -> dict[str, Any]:
        """Return the comparison as JSON values."""
        return {"same": self.same, "recorded": self.recorded, "now": self.now}


def compare_inputs(
    history: StepHistory, found: LoadedCheckpoint | None, now: Inputs
) -> InputComparison:
    """Compare the inputs that decide a step which is trained from a state.

    found: the state; None: the initial weights, which then count too, as does a checkpoint of
    another run that this one started from. The output of the teacher is that of the attempts which
    trained the steps from the state on. A collective.
    """
    folder = history.folder
    start = on_rank0(lambda: read_inputs(folder))
    source = folder.path
    names: tuple[str, ...] = ("teacher",)
    if found is None:
        names = ("teacher", "finetune", "initial weights")
        # a run of an older version that was resumed: its start is not recorded
        start = start if start.get("initial weights") else {}
    elif not folder.holds(found.path):
        names = ("teacher", "initial weights")
        now = now | {"initial weights": describe_checkpoint(found.path)}
    else:
        start = take_inputs(found.state, found.path)
        source = found.path
    changed = list_changed_inputs(start, now, names)
    first = found.state["step"] if found else history.first_step
    changed += _list_other_outputs(history.teacher_outputs(first), name_teacher_output(now))
    return InputComparison(start, now, changed, list_unknown_inputs(start, now, names, source))


def _list_other_outputs(recorded: set[str], now: str) -> list[str]:
    """Return a line if some of the steps had another output of the teacher."""
    others = ", ".join(sorted(recorded - {now}))
    return [f"teacher output: {others}, now {now or 'none'}"] if others else []
