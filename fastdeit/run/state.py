"""A run while it trains: all that is alive of it."""

from dataclasses import dataclass, field
from typing import Any

from fastdeit.checkpoint.writer import CheckpointWriter
from fastdeit.config.schema import Config
from fastdeit.data.eval_loader import EvalLoader
from fastdeit.data.index import Index
from fastdeit.data.loader import TrainLoader
from fastdeit.data.quarantine import Quarantine
from fastdeit.display.console import RunConsole
from fastdeit.distributed.world import World
from fastdeit.plan.plan import Plan
from fastdeit.reliability.health import Health
from fastdeit.reliability.supervisor import Supervisor
from fastdeit.run.identity import fingerprints, versions
from fastdeit.run.metrics import MetricLog
from fastdeit.storage.run_folder import RunFolder
from fastdeit.teacher_cache.reader import CachedTeacher
from fastdeit.training.trainer import Meter, Trainer


@dataclass
class Run:
    """Everything that is alive during training."""

    config: Config
    recipe: str
    world: World
    folder: RunFolder
    train_index: Index
    val_index: Index
    plan: Plan
    trainer: Trainer
    train_loader: TrainLoader
    val_loader: EvalLoader
    quarantine: Quarantine
    cached_teacher: CachedTeacher | None
    console: RunConsole
    supervisor: Supervisor
    checkpoints: CheckpointWriter
    health: Health
    notes: list[str] = field(default_factory=list)
    """What a person should know of how the parts were made to fit."""
    log: MetricLog | None = None
    meter: Meter = field(default_factory=Meter)
    mark: tuple[float, int] = (0.0, 0)
    """When, and after which step, the rate was last measured."""
    evaluated: int = 0
    """The step of the last evaluation."""
    compared: int = -1
    """The step after which all ranks' weights were last found equal."""
    saved: int = -1
    """The step of the last checkpoint of this process."""

    @property
    def fingerprints(self) -> dict[str, Any]:
        pixels = self.train_loader.options.describe()
        return fingerprints(self.plan, self.train_index, self.config.optim.batch_size, pixels)

    @property
    def steps_per_epoch(self) -> int:
        return self.train_loader.steps_per_epoch

    @property
    def total_steps(self) -> int:
        return self.config.optim.epochs * self.steps_per_epoch

    def about(self, step: int) -> dict[str, Any]:
        """What a checkpoint of `step` tells of its run beside what training goes on from."""
        return {
            "epoch": step // self.steps_per_epoch,
            "samples": step * self.config.optim.batch_size,
            "evaluated": self.evaluated,
            "quarantine": self.quarantine.fingerprint(),
            "world_size": self.world.size,
            "config": self.config.to_dict(),
            "versions": versions(),
        }
