"""What a step run again gave, and what the run recorded of it: the parts of step.json."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from fastdeit.replay.history import Metrics
from fastdeit.replay.inputs import InputComparison


@dataclass(frozen=True)
class MicroBatchResult:
    """The losses of a micro-batch; rank: that of the run."""

    rank: int
    micro_batch: int
    loss: float
    base: float
    distill: float


@dataclass(frozen=True)
class SampleResult:
    """The losses of a sample, and the class that its teacher chose; None without a teacher."""

    rank: int
    micro_batch: int
    ordinal: int
    image: str
    loss: float
    base: float
    distill: float
    teacher: int | None

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values, without `teacher` if there is none."""
        values = dataclasses.asdict(self)
        if self.teacher is None:
            del values["teacher"]
        return values


@dataclass(frozen=True)
class ProcessResult:
    """The micro-batches and samples of a step that one process ran again; plan: lines of
    plan.json."""

    micro_batches: list[MicroBatchResult]
    samples: list[SampleResult]
    plan: list[dict[str, Any]]
    digest: int


@dataclass(frozen=True)
class Origin:
    """Origin of the state before the step: a checkpoint, and the steps trained since."""

    source: str
    trained: list[int]
    inputs: InputComparison
    notes: list[str]


@dataclass(frozen=True)
class DigestComparison:
    """The hash of the samples of steps from, to (exclusive), as recorded and now."""

    steps: tuple[int, int]
    recorded: str
    now: str


@dataclass(frozen=True)
class Recorded:
    """Records of the step in the run folder, under the names of step.json."""

    values: dict[str, float] | None
    """Losses, gradient norm and learning rate, if they were recorded of this step alone."""
    skipped: bool | None
    digest: DigestComparison | None
    same_samples: bool | None
    """True if the samples are those of the run; None: not recorded."""
    metrics: Metrics | None
    means_are_of_steps: tuple[int, int] | None
    bad_step: dict[str, Any] | None
    spike: dict[str, Any] | None
    passed_over_later: bool


@dataclass(frozen=True)
class Now:
    """The step as it was run again, over all ranks."""

    loss: float
    base: float
    distill: float
    grad_norm: float
    lr: float
    skipped: bool
    digest: str


@dataclass(frozen=True)
class Report:
    """Everything about the step."""

    run: str
    step: int
    epoch: int
    step_of_epoch: int
    origin: Origin
    processes: dict[str, int]
    now: Now
    recorded: Recorded
    micro_batches: list[dict[str, Any]]
    samples: list[SampleResult]
    notes: list[str]

    @property
    def repeats_the_run(self) -> bool:
        """Return False if the samples or the inputs are known to be others than in the run."""
        return self.recorded.same_samples is not False and not self.origin.inputs.changed

    def to_json(self) -> dict[str, Any]:
        """Return the content of step.json."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        origin = values.pop("origin")
        state = {"state": {"from": origin.source, "trained": origin.trained}}
        values["inputs"] = origin.inputs.to_json()
        values["now"] = dataclasses.asdict(self.now)
        values["recorded"] = dataclasses.asdict(self.recorded)
        values["samples"] = [sample.to_json() for sample in self.samples]
        names = ("run", "step", "epoch", "step_of_epoch")
        return {name: values.pop(name) for name in names} | state | values
