"""Numerical health of a run: skipped steps, spikes of the gradient norm, rollbacks.

A step whose loss or gradient is not finite on any rank is skipped on all ranks. A step is named by
how many steps were done before it, as a checkpoint is: `step-N` is the state that step N begins
with.
"""

import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fastdeit.distributed.collectives import on_rank0
from fastdeit.distributed.errors import RunError
from fastdeit.plan.digest import add_digests, show_digest
from fastdeit.reliability.bad_steps import BadStep, StepPlace, gather_bad_step
from fastdeit.reliability.rollbacks import Rollbacks
from fastdeit.storage.jsonl import StepLog
from fastdeit.storage.run_folder import RunFolder
from fastdeit.training.trainer import STATISTICS, MicroStep

WINDOW = 100
"""The number of steps whose gradient norms the next one is compared with."""
SPIKE = 10.0
"""The multiple of their median above which a gradient norm is a spike, unless the median is 0."""

_MIN_WINDOW = 20  # norms to compare with, before anything is called a spike


class HealthError(RunError):
    """Error if training diverged, or the ranks hold different weights; raised on every rank."""

    heard_by_all = True


@dataclass(frozen=True, kw_only=True)
class Spike(StepPlace):
    """A line of spikes.jsonl: a step whose gradient norm was much larger than those before it."""

    grad_norm: float
    median: float
    """The median of the gradient norms of up to `WINDOW` steps before."""
    loss: float


class Health:
    """The records of one run's bad numbers, in its folder; on every rank, rank 0 writes.

    steps_per_epoch, batch_size: those of the run; warn: called with a line for the user. Call
    `open` and `begin` before the other methods.
    """

    def __init__(
        self,
        folder: RunFolder,
        steps_per_epoch: int,
        batch_size: int,
        warn: Callable[[str], None],
    ) -> None:
        self._folder = folder
        self._steps_per_epoch = steps_per_epoch
        self._batch_size = batch_size
        self._warn = warn
        self._bad_log: StepLog[BadStep] | None = None
        self._spike_log: StepLog[Spike] | None = None
        self._recent: deque[dict[str, float]] = deque(maxlen=WINDOW)
        self.rollbacks = Rollbacks(folder)
        self.bad: list[BadStep] = []
        """The steps that were skipped in a row up to now."""

    def open(self, step: int) -> None:
        """Open the files as they were when the run was at `step`. On rank 0 only.

        The record of a later bad step remains if every later start skips that step. Raises OSError.
        """
        self.close()
        self._bad_log = StepLog(
            self._folder.bad_steps,
            BadStep,
            lambda bad: bad < step or bad in self.rollbacks,
            self._warn,
        )
        self._spike_log = StepLog(
            self._folder.spikes, Spike, lambda spike: spike < step, self._warn
        )

    def begin(self, step: int) -> None:
        """Start or resume the run at `step`, after `open`. A collective."""
        before = [applied for applied in self._recent if applied["step"] < step]
        self._recent = deque(before, WINDOW)
        self.bad = on_rank0(lambda: self._in_a_row(step))

    def _in_a_row(self, step: int) -> list[BadStep]:
        """Return the unbroken row of skipped steps that ends just before `step`."""
        assert self._bad_log is not None, "the files are open on rank 0"
        records = {record.step: record for record in self._bad_log.records}
        first = step
        while first - 1 in records and first - 1 not in self.rollbacks:
            first -= 1
        return [records[bad] for bad in range(first, step)]

    def close(self) -> None:
        """Close the files."""
        if self._bad_log is not None:
            self._bad_log.close()
        if self._spike_log is not None:
            self._spike_log.close()
        self._bad_log = None
        self._spike_log = None

    def note_bad(
        self, step: int, micro_steps: Sequence[MicroStep], name: Callable[[int], str]
    ) -> None:
        """Record a skipped step. A collective; waits for the device.

        micro_steps: this rank's; name: returns the name of an image by its row.
        """
        record = gather_bad_step(self._place(step), micro_steps, name)
        if not self.bad:
            where = self._folder.bad_steps.name
            self._warn(f"step {step} skipped on all ranks: {record.cause} (details in {where})")
        self.bad.append(record)
        if self._bad_log is not None:
            self._bad_log.append(record)

    def note_applied(self, step: int, values: Sequence[float]) -> dict[str, float]:
        """Record a step that changed the weights, and whether its gradient norm is a spike.

        values: of `STATISTICS`, over all ranks. Returns them by name, with the step.
        """
        applied = {"step": step, **dict(zip(STATISTICS, values, strict=True))}
        norms = [before["grad_norm"] for before in self._recent]
        self._recent.append(applied)
        median = statistics.median(norms) if len(norms) >= _MIN_WINDOW else math.inf
        if applied["grad_norm"] > SPIKE * median > 0:
            self._note_spike(step, applied, median)
        return applied

    def _note_spike(self, step: int, applied: Mapping[str, float], median: float) -> None:
        norm = applied["grad_norm"]
        spike = Spike(**self._place(step), grad_norm=norm, median=median, loss=applied["loss"])
        if self._spike_log is not None:
            self._spike_log.append(spike)
        times = f"{norm / median:.0f} times the median of the steps before"
        where = self._folder.spikes.name
        self._warn(f"step {step}: gradient norm {norm:.3g}, {times} (details in {where})")

    def _place(self, step: int) -> dict[str, Any]:
        """Return the fields of `StepPlace` for a step that was just taken."""
        epoch, place = divmod(step, self._steps_per_epoch)
        ordinals = (place * self._batch_size, (place + 1) * self._batch_size)
        return {"step": step, "epoch": epoch, "ordinals": ordinals, "time": time.time()}

    def report(self) -> dict[str, Any]:
        """Return what is known of the bad steps in a row, and of the steps before them."""
        first = self.bad[0].step
        recent = [applied for applied in self._recent if applied["step"] < first]
        return {
            "step": first,
            "bad_steps": [asdict(bad) for bad in self.bad],
            "recent_steps": recent,
            "rollbacks": [asdict(rollback) for rollback in self.rollbacks.entries],
        }

    def state_before(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Return the counts of a checkpoint's state as they were before the bad steps in a row.

        A skipped step changes these counts and nothing else, so weights and moments are already
        those of that moment.
        """
        first = self.bad[0].step
        # the digest is a sum: subtracting the hashes of the bad steps takes them out again
        bad_samples = add_digests(*(int(bad.digest, 16) for bad in self.bad))
        digest = (int(state["digest"], 16) - bad_samples) % 2**64
        return {
            "step": first,
            "skipped": state["skipped"] - (state["step"] - first),
            "digest": show_digest(digest),
        }


def summarise(steps: Sequence[dict[str, float]], clip_grad: float | None) -> dict[str, float]:
    """Return a line of the log from what `Health.note_applied` returned for several steps.

    It has the means, the largest gradient norm and, with `clip_grad`, the share of steps that were
    clipped. Empty without steps.
    """
    if not steps:
        return {}
    norms = [step["grad_norm"] for step in steps]
    values = {name: statistics.fmean(step[name] for step in steps) for name in STATISTICS}
    values["grad_norm_max"] = max(norms)
    if clip_grad is not None:
        values["clipped"] = statistics.fmean(norm > clip_grad for norm in norms)
    return values
