"""History of one step from the run folder: attempt, log, bad steps, excluded images.

The folder is only read, so the run may be training.
"""

from dataclasses import dataclass
from typing import Any

from fastdeit.checkpoint.files import Tensors
from fastdeit.checkpoint.select import LoadedCheckpoint, find_checkpoint
from fastdeit.checkpoint.store import list_checkpoints, step_of
from fastdeit.config.parse import require
from fastdeit.config.schema import Config
from fastdeit.data.quarantine import QuarantinedImage, read_quarantine
from fastdeit.distributed.collectives import on_rank0
from fastdeit.reliability.bad_steps import BadStep
from fastdeit.reliability.failures import read_failures
from fastdeit.reliability.health import Spike
from fastdeit.reliability.rollbacks import read_rollbacks
from fastdeit.storage.attempts import Attempt, attempt_at, read_attempts
from fastdeit.storage.jsonl import read_json_lines, read_records
from fastdeit.storage.run_folder import RunFolder

Metrics = dict[str, Any]
"""A line of metrics.jsonl; its `step` is the number of finished steps."""


@dataclass(frozen=True)
class Window:
    """The steps from `first` to `last` (exclusive) between two lines of the log, and the hash of
    their samples."""

    first: int
    last: int
    digest: int


@dataclass(frozen=True)
class StepHistory:
    """Everything recorded of step `step`: the step that follows `step` finished steps."""

    folder: RunFolder
    step: int
    attempt: Attempt
    """The attempt in which the step was trained, for the last time if it was trained again."""
    bad_step: BadStep | None
    spike: Spike | None
    attempts: list[Attempt]
    metrics: list[Metrics]
    quarantine: list[QuarantinedImage]
    skipped_ranges: list[tuple[int, int]]
    """The ranges of steps, from, to (exclusive), that rollbacks excluded, in the order of the
    rollbacks."""

    @property
    def was_rolled_back(self) -> bool:
        """Return True if the run rolled back to before the step, and then skipped it."""
        return self.skipped_now(self.step)

    @property
    def latest_state(self) -> int:
        """Return the latest step whose checkpoint can have led to this step.

        A checkpoint within a skipped range was saved after the rollback, with the steps before it
        skipped; if this step lies in the range, it was trained before that.
        """
        starts = [first for first, last in self.skipped_ranges if first <= self.step < last]
        return min([self.step, *starts])

    def skipped_before(self, step: int) -> bool:
        """Return True if the run had already skipped `step` when it trained this step."""
        return any(first <= step < last <= self.step for first, last in self.skipped_ranges)

    def skipped_now(self, step: int) -> bool:
        """Return True if the run, after its last rollback, skipped `step`."""
        return any(first <= step < last for first, last in self.skipped_ranges)

    def excluded_images(self, step: int) -> frozenset[int]:
        """Return the rows of the training images that were excluded when the run trained `step`."""
        attempt = attempt_at(self.attempts, step) or self.attempt
        later = (image.row for image in self.quarantine if image.step <= step)
        return frozenset(attempt.left_out) | frozenset(later)

    def teacher_outputs(self, first: int) -> set[str]:
        """Return what the attempts that trained the steps from `first` to this one read of the
        teacher's output, as far as it is recorded."""
        starts = [each.step for each in self.attempts if first < each.step <= self.step]
        attempts = [attempt_at(self.attempts, step) for step in (first, *starts)]
        return {each.teacher_output for each in attempts if each and each.teacher_output}

    @property
    def first_step(self) -> int:
        """Return the step that the run began with: 0, but for --resume."""
        return self.attempts[0].step

    def metrics_line(self) -> tuple[Metrics | None, int]:
        """Return the line of the log that covers this step, if there is one, and the first step
        that its means cover."""
        lines = [line for line in self.metrics if "lr" in line]
        after = next((line for line in lines if line["step"] > self.step), None)
        before = max((line["step"] for line in lines if line["step"] <= self.step), default=0)
        return (None if self.was_rolled_back else after), max(before, self.attempt.step)

    def window(self) -> Window | None:
        """Return the smallest range of steps around this one whose hash is in the log."""
        digests = {0: "0"} if self.first_step == 0 else {}
        digests |= {line["step"]: line["digest"] for line in self.metrics if "digest" in line}
        first = max((step for step in digests if step <= self.step), default=None)
        last = min((step for step in digests if step > self.step), default=None)
        if first is None or last is None or self.was_rolled_back:
            return None
        return Window(first, last, (int(digests[last], 16) - int(digests[first], 16)) % 2**64)


def read_history(config: Config, folder: RunFolder, step: int) -> StepHistory:
    """Read what a run's folder records of a step. Raise ValueError for a step that the run has not
    trained, as far as the folder shows."""
    attempts = read_attempts(folder)
    metrics = read_json_lines(folder.metrics)
    bad_steps = read_records(folder.bad_steps, BadStep)
    spikes = read_records(folder.spikes, Spike)
    attempt = attempt_at(attempts, step)
    first = attempts[0].step
    require(attempt is not None, "step", step, f"{first} or more, where {folder} began")
    assert attempt is not None
    seen = [record.step + 1 for record in (*bad_steps, *spikes)]
    seen += [failure.step + 1 for failure in read_failures(folder)]
    seen += [line["step"] for line in metrics]
    seen += [step_of(path) for path in list_checkpoints(folder.checkpoints)]
    # so many of the last steps may be in no file
    end = max(seen, default=0) + config.run.log_steps
    require(0 <= step < end, "step", step, f"0 to {end - 1}, the last step that {folder} can hold")
    return StepHistory(
        folder=folder,
        step=step,
        attempt=attempt,
        bad_step=next((bad for bad in reversed(bad_steps) if bad.step == step), None),
        spike=next((spike for spike in reversed(spikes) if spike.step == step), None),
        attempts=attempts,
        metrics=metrics,
        quarantine=read_quarantine(folder.quarantine, config.data.train_split),
        skipped_ranges=[rollback.passed_over for rollback in read_rollbacks(folder)],
    )


def find_state(history: StepHistory, resumed: str, layout: Tensors) -> LoadedCheckpoint | None:
    """Load the newest state that led to the step: a checkpoint, or a debug bundle; None: the start
    of the run.

    resumed: the checkpoint that the run itself started from, if any; layout: as in
    `load_checkpoint`. Raise ValueError if there is none, or none is whole. A collective.
    """
    named = on_rank0(lambda: _find_newer_bundle(history)) or resumed
    found = find_checkpoint(history.folder, named, layout, before=history.latest_state + 1)
    if found is None and history.first_step > 0:
        raise ValueError(f"{history.folder}: no checkpoint of step {history.step} or before")
    return found


def _find_newer_bundle(history: StepHistory) -> str:
    """Return the newest state in a debug bundle that led to the step, or "" if a checkpoint of the
    run is as new."""
    latest = history.latest_state
    bundled = []
    for folder in history.folder.debug_bundles():
        for path in list_checkpoints(folder):
            if step_of(path) <= latest and not history.skipped_before(step_of(path)):
                bundled.append(path)
    own = [step_of(path) for path in list_checkpoints(history.folder.checkpoints)]
    newest_own = max((step for step in own if step <= latest), default=-1)
    newest = max(bundled, key=step_of, default=None)
    return "" if newest is None or step_of(newest) <= newest_own else str(newest)


def check_folder(folder: RunFolder) -> None:
    """Raise ValueError unless a run was started in `folder`."""
    needed = (folder.config, folder.train_images, folder.attempts)
    absent = [path.name for path in needed if not path.is_file()]
    if absent:
        raise ValueError(
            f"RUN must be a run folder on this machine (got {folder}, "
            f"which has no {' and no '.join(absent)})"
        )
