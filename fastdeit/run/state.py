"""The objects of a run while it trains: its services, and its progress."""

import math
import statistics
import time
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from fastdeit.checkpoint.writer import CheckpointWriter
from fastdeit.config.schema import Config
from fastdeit.data.index import Index
from fastdeit.data.loaders.batch import Batch
from fastdeit.data.loaders.evaluation import EvalLoader
from fastdeit.data.loaders.train import TrainLoader
from fastdeit.data.quarantine import Quarantine
from fastdeit.display.console import RunConsole
from fastdeit.distributed.versions import versions
from fastdeit.distributed.world import World
from fastdeit.plan.plan import Plan
from fastdeit.reliability.health import Health
from fastdeit.reliability.supervisor import Supervisor
from fastdeit.run.inputs import Inputs
from fastdeit.run.report import ReportWriter
from fastdeit.storage.run_folder import RunFolder
from fastdeit.teacher_cache.reader import CachedTeacher
from fastdeit.tracking.log import MetricLog
from fastdeit.tracking.trackers import Trackers
from fastdeit.training.flops import Utilisation
from fastdeit.training.trainer import LaunchedStep, Meter, Trainer


@dataclass(frozen=True)
class RunData:
    """Both splits of the data set, and what is planned and recorded for the training images."""

    train_index: Index
    val_index: Index
    plan: Plan
    cached_teacher: CachedTeacher | None
    quarantine: Quarantine
    """The damaged images of the training split."""
    train_loader: TrainLoader
    val_loader: EvalLoader


class Pace:
    """Seconds that a step, an evaluation and a checkpoint take: means of the latest, without those
    that took several times as long as usual, in a pause or while kernels were compiled."""

    LATEST = 100
    """The number of latest measurements of a kind that count."""
    PAUSE = 5.0
    """The multiple of the usual time above which a measurement does not count."""

    def __init__(self) -> None:
        self._spans: dict[str, deque[tuple[int, float]]] = defaultdict(
            lambda: deque(maxlen=self.LATEST)
        )

    def add(self, kind: str, count: int, seconds: float) -> None:
        """Store the seconds that `count` of a kind took together."""
        if count > 0:
            self._spans[kind].append((count, seconds))

    @contextmanager
    def timed(self, kind: str) -> Iterator[None]:
        """Store the seconds that one of a kind takes, unless it fails."""
        start = time.monotonic()
        yield
        self.add(kind, 1, time.monotonic() - start)

    def estimate(self, counts: Mapping[str, int]) -> float | None:
        """Return the seconds that so many of each kind take, where a kind that was not seen yet
        takes none; None before the first step."""
        if not self._spans["step"]:
            return None
        return sum(count * self._mean(kind) for kind, count in counts.items())

    def _mean(self, kind: str) -> float:
        spans = self._spans[kind]
        if not spans:
            return 0.0
        usual = statistics.median_low(seconds / count for count, seconds in spans)
        steady = [span for span in spans if span[1] <= self.PAUSE * usual * span[0]]
        return sum(seconds for _, seconds in steady) / sum(count for count, _ in steady)


@dataclass
class Progress:
    """Progress of the training loop; all steps are counts of finished optimizer steps."""

    meter: Meter = field(default_factory=Meter)
    """The statistics of the steps since the last line of the log."""
    launched: deque[LaunchedStep] = field(default_factory=deque)
    """The steps of which it is not recorded yet whether they were skipped."""
    last_logged_step: int = 0
    last_evaluated_step: int = 0
    last_compared_step: int = -1
    """The step after which all ranks' weights were last found equal; -1: not compared yet."""
    last_saved_step: int = -1
    """The step of the last checkpoint of this process; -1: none yet."""
    clock_step: int = 0
    clock_time: float = field(default_factory=time.monotonic)
    """The time from which the rate is measured, by `time.monotonic`."""
    waited_s: float = 0.0
    """The seconds since then in which the loop waited for a batch."""
    pace: Pace = field(default_factory=Pace)

    def restart(self, step: int, last_evaluated_step: int) -> None:
        """Forget everything after `step`, whose checkpoint has just been restored."""
        self.meter = Meter()
        self.launched.clear()
        self.last_evaluated_step = last_evaluated_step
        self.last_compared_step = -1
        self.last_saved_step = step
        self.restart_clock(step)

    def restart_clock(self, step: int) -> None:
        """Measure the rate from now on, so that it is that of training alone."""
        self.clock_step = step
        self.clock_time = time.monotonic()
        self.waited_s = 0.0

    def time_waits(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yield the batches; add the time of the wait for each to `waited_s`."""
        while True:
            start = time.monotonic()
            batch = next(batches, None)
            self.waited_s += time.monotonic() - start
            if batch is None:
                return
            yield batch
            # else its memory would be held while the next one is waited for
            del batch

    def wait_share(self) -> float:
        """Return the share of the time since the clock was restarted that `waited_s` is."""
        return self.waited_s / max(time.monotonic() - self.clock_time, 1e-9)

    def rate(self, step: int) -> float:
        """Return the optimizer steps per second since the clock was restarted, and restart it."""
        steps = step - self.clock_step
        seconds = time.monotonic() - self.clock_time
        self.pace.add("step", steps, seconds)
        self.restart_clock(step)
        return steps / seconds


@dataclass(frozen=True)
class Run:
    """The services of a run. None of them is replaced while it trains."""

    config: Config
    recipe: str
    world: World
    folder: RunFolder
    data: RunData
    trainer: Trainer
    inputs: Inputs
    """The facts that decide a loss in addition to the settings; the initial weights of a resumed
    run are those of its start."""
    console: RunConsole
    supervisor: Supervisor
    checkpoints: CheckpointWriter
    health: Health
    log: MetricLog
    trackers: Trackers
    report: ReportWriter
    progress: Progress
    utilisation: Utilisation

    @property
    def steps_per_epoch(self) -> int:
        """Return the optimizer steps of an epoch."""
        return self.data.train_loader.steps_per_epoch

    @property
    def total_steps(self) -> int:
        """Return the optimizer steps of the whole run."""
        return self.config.optim.epochs * self.steps_per_epoch

    def estimate_seconds_left(self) -> float | None:
        """Return the seconds to the end of the run at the pace of this process; None before its
        first steps."""
        counts = count_left(self.config, self.steps_per_epoch, self.trainer.step, self.progress)
        return self.progress.pace.estimate(counts)

    def describe(self, step: int) -> dict[str, Any]:
        """Return the metadata of a checkpoint of `step` that the trainer's state lacks."""
        return {
            "epoch": step // self.steps_per_epoch,
            "samples": step * self.config.optim.batch_size,
            "evaluated": self.progress.last_evaluated_step,
            "inputs": self.inputs,
            "quarantine": self.data.quarantine.fingerprint(),
            "world_size": self.world.size,
            "config": self.config.to_dict(),
            "versions": versions(),
        }


def count_left(
    config: Config, steps_per_epoch: int, step: int, progress: Progress
) -> dict[str, int]:
    """Return how many steps, evaluations and checkpoints a run has left after `step`."""
    epochs = config.optim.epochs
    steps = epochs * steps_per_epoch
    # what is due after this step itself counts until it is done
    evaluated = max(progress.last_evaluated_step, step - 1) // steps_per_epoch
    saved = max(progress.last_saved_step, step - 1, 0)
    due = range(evaluated + 1, epochs + 1)
    evaluations = sum(1 for epoch in due if is_evaluated(config, epoch))
    # the results take one more evaluation
    counts = {"step": steps - step, "evaluation": evaluations + 1}
    return counts | {"checkpoint": _count_saves(config, steps_per_epoch, saved, steps)}


def is_evaluated(config: Config, epoch: int) -> bool:
    """Return True if the model is evaluated after so many epochs."""
    return epoch % config.run.eval_epochs == 0 or epoch == config.optim.epochs


def _count_saves(config: Config, steps_per_epoch: int, saved: int, last: int) -> int:
    """Return the number of checkpoints after step `saved`: at the end of each epoch, and after
    every --save-steps steps where no epoch ends."""

    def count(every: int) -> int:
        return last // every - saved // every

    often = config.checkpoint.save_steps
    extra = count(often) - count(math.lcm(often, steps_per_epoch)) if often else 0
    return count(steps_per_epoch) + extra
