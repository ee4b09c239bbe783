"""What a run knows of its own numbers: steps that were skipped, gradients that spike, the times
that it went back.

A step whose loss or gradient is not finite on any rank is skipped on all. Steps are named by how
many were done before them, as checkpoints are: `step-N` is the state that step N begins with.
"""

import json
import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist

from fastdeit.distributed.collectives import on_rank0
from fastdeit.distributed.errors import RunError
from fastdeit.plan.digest import add_digests, show_digest
from fastdeit.reliability.rollbacks import Rollbacks
from fastdeit.storage.atomic import atomic_write_text
from fastdeit.storage.jsonl import AppendOnlyFile, read_metrics
from fastdeit.storage.run_folder import RunFolder
from fastdeit.training.trainer import STATISTICS, MicroStep

WINDOW = 100
"""Steps whose gradient norms the next one is compared with."""
SPIKE = 10.0
"""Times the median of those: a gradient norm above it is written down."""

_FEWEST = 20  # of them, before anything is called a spike


class HealthError(RunError):
    """Training diverged, or the ranks hold different weights; raised on every rank."""

    heard_by_all = True


class Journal:
    """A file of JSON lines, one a step, which is there once it has one.

    keep: which of the lines of earlier starts stay; tell: hears of a disk that refuses, which ends
    no run. Use on rank 0 only.
    """

    def __init__(
        self, path: Path, keep: Callable[[int], bool], tell: Callable[[str], None]
    ) -> None:
        self._path, self._tell = path, tell
        self._file: AppendOnlyFile | None = None
        self.lines = [line for line in read_metrics(path) if keep(line["step"])]
        """Those that stayed."""
        if path.is_file():
            atomic_write_text(path, "".join(json.dumps(line) + "\n" for line in self.lines))

    def add(self, line: dict[str, Any]) -> None:
        """line: has the `step`, and no number that is not finite."""
        try:
            self._file = self._file or AppendOnlyFile(self._path, self._tell)
        except OSError as error:
            self._tell(f"{self._path} is not written: {error}; the run goes on")
            return
        self._file.append(json.dumps(line, allow_nan=False).encode() + b"\n")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class Health:
    """The records of one run's bad numbers, in its folder; on every rank, rank 0 writes.

    steps_per_epoch, batch_size: of the run; tell: hears what a person should know. Call `open` and
    `begin` before the rest.
    """

    def __init__(
        self,
        folder: RunFolder,
        rank: int,
        steps_per_epoch: int,
        batch_size: int,
        tell: Callable[[str], None],
    ) -> None:
        self._folder, self._rank, self._tell = folder, rank, tell
        self._steps_per_epoch, self._batch_size = steps_per_epoch, batch_size
        self._journals: dict[str, Journal] = {}
        self._recent: deque[dict[str, float]] = deque(maxlen=WINDOW)
        self.rollbacks = Rollbacks(folder)
        self.bad: list[dict[str, Any]] = []
        """What was written down of the steps that were skipped in a row up to now."""

    def open(self, step: int) -> None:
        """The files as they were when the run was at `step`, but for steps that are passed over. On
        rank 0 alone.

        Raises OSError.
        """
        self.close()
        bad = Journal(
            self._folder.bad_steps, lambda line: line < step or line in self.rollbacks, self._tell
        )
        self._journals = {
            self._folder.bad_steps.name: bad,
            self._folder.spikes.name: Journal(
                self._folder.spikes, lambda line: line < step, self._tell
            ),
        }

    def begin(self, step: int) -> None:
        """The run goes on from `step`; the files are open. A collective."""
        self._recent = deque(
            (applied for applied in self._recent if applied["step"] < step), WINDOW
        )
        self.bad = on_rank0(lambda: self._in_a_row(step))

    def _in_a_row(self, step: int) -> list[dict[str, Any]]:
        """What was written down of the unbroken row of skipped steps that ends just before `step`."""
        lines = {line["step"]: line for line in self._journals[self._folder.bad_steps.name].lines}
        first = step
        while first - 1 in lines and first - 1 not in self.rollbacks:
            first -= 1
        return [lines[bad] for bad in range(first, step)]

    def close(self) -> None:
        for journal in self._journals.values():
            journal.close()
        self._journals = {}

    def note_bad(
        self, step: int, micro_steps: Sequence[MicroStep], name: Callable[[int], str]
    ) -> None:
        """A step was skipped. A collective; waits for the device.

        micro_steps: this rank's; name: of an image by its row.
        """
        line = self._place(step) | _gather_bad(micro_steps, name)
        if not self.bad:
            self._tell(
                f"step {step} skipped on all ranks: {_cause(line)} (more in {self._folder.bad_steps.name})"
            )
        self.bad.append(line)
        self._write(self._folder.bad_steps.name, line)

    def note_applied(self, step: int, values: Sequence[float]) -> dict[str, float]:
        """A step changed the weights; values: of `STATISTICS`, over all ranks. Returns them by
        name, with the step."""
        applied = {"step": step, **dict(zip(STATISTICS, values, strict=True))}
        norms = [before["grad_norm"] for before in self._recent]
        self._recent.append(applied)
        median = statistics.median(norms) if len(norms) >= _FEWEST else math.inf
        if applied["grad_norm"] > SPIKE * median:
            self._note_spike(applied, median)
        return applied

    def _note_spike(self, applied: dict[str, float], median: float) -> None:
        step, norm = int(applied["step"]), applied["grad_norm"]
        self._write(
            self._folder.spikes.name,
            self._place(step) | {"grad_norm": norm, "median": median, "loss": applied["loss"]},
        )
        self._tell(
            f"step {step}: gradient norm {norm:.3g}, {norm / median:.0f} times the median of those before (in {self._folder.spikes.name})"
        )

    def _place(self, step: int) -> dict[str, Any]:
        epoch, place = divmod(step, self._steps_per_epoch)
        ordinals = [place * self._batch_size, (place + 1) * self._batch_size]
        return {"step": step, "epoch": epoch, "ordinals": ordinals, "time": time.time()}

    def _write(self, name: str, line: dict[str, Any]) -> None:
        if name in self._journals:
            self._journals[name].add(line)

    def report(self) -> dict[str, Any]:
        """What is known of the bad steps in a row, and of the steps before them."""
        first = self.bad[0]["step"]
        recent = [applied for applied in self._recent if applied["step"] < first]
        return {
            "step": first,
            "bad_steps": self.bad,
            "recent_steps": recent,
            "rollbacks": self.rollbacks.entries,
        }

    def state_before(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """The counts in a checkpoint's state, as they were before the bad steps in a row; they
        changed nothing else."""
        first, taken = self.bad[0]["step"], [int(line["digest"], 16) for line in self.bad]
        digest = (int(state["digest"], 16) - add_digests(*taken)) % 2**64
        return {
            "step": first,
            "skipped": state["skipped"] - (state["step"] - first),
            "digest": show_digest(digest),
        }


def _gather_bad(micro_steps: Sequence[MicroStep], name: Callable[[int], str]) -> dict[str, Any]:
    losses = [micro.losses[0].item() for micro in micro_steps]
    bad = [place for place, loss in enumerate(losses) if not math.isfinite(loss)]
    mine = {
        "losses": [_number(loss) for loss in losses],
        "bad": [_describe(place, micro_steps[place], name) for place in bad],
        "digest": add_digests(*(micro.digest for micro in micro_steps)),
    }
    ranks: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(ranks, mine)
    return {
        "digest": show_digest(add_digests(*(each["digest"] for each in ranks))),
        "grad_norm": _number(math.inf),  # all that DeepSpeed tells of it
        "losses": [each["losses"] for each in ranks],
        "not_finite": [
            {"rank": rank, **entry} for rank, each in enumerate(ranks) for entry in each["bad"]
        ],
    }


def _describe(place: int, micro: MicroStep, name: Callable[[int], str]) -> dict[str, Any]:
    rows = micro.image_index.tolist()
    return {
        "micro_batch": place,
        "ordinals": micro.ordinals.tolist(),
        "rows": rows,
        "images": [name(row) for row in rows],
    }


def _number(value: float) -> float | str:
    """As JSON can hold it: a number that is not finite by its name."""
    return value if math.isfinite(value) else str(value)


def _cause(line: dict[str, Any]) -> str:
    ranks = sorted({entry["rank"] for entry in line["not_finite"]})
    return (
        f"the loss is not finite on rank {', '.join(map(str, ranks))}"
        if ranks
        else "the gradient is not finite"
    )


def summarise(steps: Sequence[dict[str, float]], clip_grad: float | None) -> dict[str, float]:
    """A line of the log out of what `Health.note_applied` gave: means, the largest norm, and the
    share of steps clipped."""
    if not steps:
        return {}
    means = {name: statistics.fmean(step[name] for step in steps) for name in STATISTICS}
    norms = [step["grad_norm"] for step in steps]
    clipped = (
        {}
        if clip_grad is None
        else {"clipped": statistics.fmean(norm > clip_grad for norm in norms)}
    )
    return means | {"grad_norm_max": max(norms)} | clipped
