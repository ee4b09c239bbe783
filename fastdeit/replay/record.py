"""What a run's folder tells of one of its steps: settings, starts, log, bad steps, and which images
it had left out by then.

Only reads, so the run may live.
"""

from dataclasses import dataclass
from typing import Any

from fastdeit.checkpoint.files import Tensors
from fastdeit.checkpoint.select import LoadedCheckpoint, find_checkpoint
from fastdeit.checkpoint.store import list_checkpoints, step_of
from fastdeit.config.schema import Config
from fastdeit.data.quarantine import QuarantinedImage, read_quarantine
from fastdeit.distributed.collectives import on_rank0
from fastdeit.reliability.bad_steps import BadStep
from fastdeit.reliability.failures import read_failures
from fastdeit.reliability.health import Spike
from fastdeit.reliability.rollbacks import read_rollbacks
from fastdeit.run.attempts import Attempt, attempt_at, read_attempts
from fastdeit.storage.jsonl import read_json_lines, read_records
from fastdeit.storage.run_folder import RunFolder

Line = dict[str, Any]


@dataclass(frozen=True)
class Window:
    """The steps `first` up to `last`, exclusive, between two lines of the log; digest: of their
    samples, as recorded."""

    first: int
    last: int
    digest: int


@dataclass(frozen=True)
class Record:
    """The record of step `step`, counted from 0: the one that follows `step` optimizer steps."""

    folder: RunFolder
    step: int
    attempt: Attempt
    """The start of the run in which the step was taken (last)."""
    bad_step: BadStep | None
    spike: Spike | None
    attempts: list[Attempt]
    metrics: list[Line]
    quarantine: list[QuarantinedImage]
    stretches: list[tuple[int, int]]
    """Steps that were passed over, from and up to, in the order in which the run went back."""

    @property
    def was_rolled_back(self) -> bool:
        """Whether the run went back to before the step and then passed over it."""
        return any(first <= self.step < last for first, last in self.stretches)

    @property
    def latest_state(self) -> int:
        """The latest step whose checkpoint has led up to this step: later ones followed when it was
        passed over."""
        return min(
            [self.step, *(first for first, last in self.stretches if first <= self.step < last)]
        )

    def skipped_before(self, step: int) -> bool:
        """Whether the run, on its way to this step, passed over `step`."""
        return any(first <= step < last for first, last in self.stretches if last <= self.step)

    def skipped_now(self, step: int) -> bool:
        """Whether the run, as it stands, passed over `step`."""
        return any(first <= step < last for first, last in self.stretches)

    def left_out(self, step: int) -> frozenset[int]:
        """Rows of the training images that the run did not read in `step`, though the plan may have
        drawn them."""
        attempt = attempt_at(self.attempts, step) or self.attempt
        later = (image.row for image in self.quarantine if image.step <= step)
        return frozenset(attempt.left_out) | frozenset(later)

    @property
    def begins_at(self) -> int:
        """The step that the run began with: 0, but for --resume."""
        return self.attempts[0].step

    def metrics_line(self) -> tuple[Line | None, int]:
        """The line of the log that tells of this step, if there is one, and the first step that its
        means are of."""
        lines = [line for line in self.metrics if "lr" in line]
        after = next((line for line in lines if line["step"] > self.step), None)
        before = max((line["step"] for line in lines if line["step"] <= self.step), default=0)
        return (None if self.was_rolled_back else after), max(before, self.attempt.step)

    def window(self) -> Window | None:
        """The narrowest about this step whose digest the log has."""
        digests = {0: "0"} if self.attempts[0].step == 0 else {}
        digests |= {line["step"]: line["digest"] for line in self.metrics if "digest" in line}
        first = max((step for step in digests if step <= self.step), default=None)
        last = min((step for step in digests if step > self.step), default=None)
        if first is None or last is None or self.was_rolled_back:
            return None
        return Window(first, last, (int(digests[last], 16) - int(digests[first], 16)) % 2**64)


def read_record(config: Config, folder: RunFolder, step: int) -> Record:
    """Raises ValueError for a step that was not taken, as far as the folder tells."""
    attempts, metrics = read_attempts(folder), read_json_lines(folder.metrics)
    attempt = attempt_at(attempts, step)
    if attempt is None:
        raise ValueError(
            f"--step: got {step}, allowed is {attempts[0].step} or more, the step that {folder} began with"
        )
    bad_steps = read_records(folder.bad_steps, BadStep)
    spikes = read_records(folder.spikes, Spike)
    seen = [record.step + 1 for record in (*bad_steps, *spikes)]
    seen += [failure.step + 1 for failure in read_failures(folder)]
    seen += [line["step"] for line in metrics] + [
        step_of(path) for path in list_checkpoints(folder.checkpoints)
    ]
    most = max(seen, default=0) + config.run.log_steps  # so many may have gone unrecorded
    if not 0 <= step < most:
        raise ValueError(
            f"--step: got {step}, allowed is 0 to {most - 1}, for {folder} tells of no later step"
        )
    return Record(
        folder=folder,
        step=step,
        attempt=attempt,
        bad_step=next((bad for bad in reversed(bad_steps) if bad.step == step), None),
        spike=next((spike for spike in reversed(spikes) if spike.step == step), None),
        attempts=attempts,
        metrics=metrics,
        quarantine=read_quarantine(folder.quarantine, config.data.train_split),
        stretches=[rollback.passed_over for rollback in read_rollbacks(folder)],
    )


def find_state(record: Record, resumed: str, layout: Tensors) -> LoadedCheckpoint | None:
    """The newest state that led up to the step: a checkpoint, or what a stop for bad steps left;
    None: the run's beginning.

    resumed: the checkpoint that the run itself began with, if any; layout: as `load_checkpoint`
    takes it. Raises ValueError if there is none, or none is whole. A collective.
    """
    named = on_rank0(lambda: _newest_bundle(record)) or resumed
    found = find_checkpoint(record.folder, named, layout, before=record.latest_state + 1)
    if found is None and record.begins_at > 0:
        raise ValueError(f"{record.folder}: there is no checkpoint of step {record.step} or before")
    return found


def _newest_bundle(record: Record) -> str:
    """The state that a stop for bad steps left, if it is newer than every checkpoint from before
    the step."""
    bundles = [
        path for folder in record.folder.debug_bundles() for path in list_checkpoints(folder)
    ]
    fits = [
        path
        for path in bundles
        if step_of(path) <= record.latest_state and not record.skipped_before(step_of(path))
    ]
    own = [
        step_of(path)
        for path in list_checkpoints(record.folder.checkpoints)
        if step_of(path) <= record.latest_state
    ]
    newest = max(fits, key=step_of, default=None)
    return "" if newest is None or step_of(newest) <= max(own, default=-1) else str(newest)


def check_folder(folder: RunFolder) -> None:
    """Raises ValueError unless a run was started in `folder`."""
    needed = (folder.config, folder.train_images, folder.attempts)
    missing = [path.name for path in needed if not path.is_file()]
    if missing:
        raise ValueError(
            f"{folder} holds no run: it has no {' and no '.join(missing)}; name the --output-dir of one"
        )
