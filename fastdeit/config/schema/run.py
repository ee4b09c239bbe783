"""The settings of a run: where, how, how long; checkpoints and limits."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from fastdeit.config.parse import Section, parse_time_limit, refuse_credentials
from fastdeit.storage.urls import is_url, is_web


@dataclass(frozen=True)
class RunConfig(Section):
    output_dir: str = ""
    """Where config, log, checkpoints and weights go; empty: runs/RECIPE. The same command in the
    same folder resumes. A URL of an object store (s3://BUCKET/NAME, gs://...): the run is uploaded
    there while it trains, and restored from there."""
    seed: int = 0
    """Seed of everything random."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """auto: bf16 with fp32 master weights on a GPU, fp32 on a CPU."""
    kernels: Literal["auto", "reference"] = "auto"
    """auto: own Triton kernels on a GPU; reference: the same in plain torch, for comparison."""
    compile: Literal["off", "on"] = "off"
    """on: torch.compile for the student and the teacher; the first step waits for it, minutes for a
    large model. Not with --zero-stage 3."""
    cuda_graph: Literal["off", "auto"] = "off"
    """auto: record the launches of a step as CUDA graphs and replay them, where that is possible:
    less work for the host, the same results. No GPU has shown it yet."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """DeepSpeed's partitioning: optimizer state (1), gradients too (2), weights too (3)."""
    grad_checkpointing: bool = False
    """Compute each block again in the backward pass, instead of storing its activations: about a
    third more work, several times less memory for activations. The same results."""
    offload_optimizer: bool = False
    """Store the optimizer's state and the master weights in CPU memory, and step there; with
    --zero-stage 2 or 3."""
    deepspeed_config: str = ""
    """A JSON file in DeepSpeed's form that sets more of its fields; fields that flags decide must
    have the same values there."""
    overlap_reduce: Literal["off", "auto"] = "off"
    """auto: at ZeRO 1 and 2 on several GPUs, reduce the gradient in pieces during the backward
    pass, if that is faster by a model of the links."""
    eval_epochs: int = 1
    """Epochs from one evaluation to the next; the last epoch is always evaluated."""
    log_steps: int = 10
    """Steps between two lines of metrics.jsonl, each with the values of all its steps; to write
    one, the loop waits for the device. A checkpoint writes one, too."""
    stop_after_steps: int = 0
    """Save and stop after this number of steps; the same command resumes there. 0: run to the
    end."""
    time_limit: str = ""
    """Save and stop after this time, in Slurm's forms: minutes, M:SS, H:MM:SS, D-H, D-H:MM,
    D-H:MM:SS. Empty: no limit."""

    def check(self) -> None:
        self._check_output_dir()
        self._require("seed", 0 <= self.seed < 2**32, "0 to 4294967295")
        partitioned = self.zero_stage >= 2 or not self.offload_optimizer
        self._require("zero_stage", partitioned, "2 or 3 with --offload-optimizer")
        whole = self.zero_stage < 3 or self.compile == "off"
        self._require("compile", whole, "off with --zero-stage 3")
        self._require_each(["eval_epochs", "log_steps"], 1)
        self._require_each(["stop_after_steps"], 0)
        parse_time_limit(self.time_limit)

    def _check_output_dir(self) -> None:
        if is_url(self.output_dir):
            refuse_credentials("output_dir", self.output_dir)
            allowed = "a folder, or the URL of a store that can be written to, as s3://BUCKET/NAME"
            self._require("output_dir", not is_web(self.output_dir), allowed)


@dataclass(frozen=True)
class CheckpointConfig(Section):
    resume: str = ""
    """A checkpoint folder to start from, instead of the newest one of --output-dir; of another run,
    with any settings (docs/resume.md). The same command, given again, resumes from its own."""
    save_steps: int = 0
    """Optimizer steps from one checkpoint to the next; each epoch ends with one, too. 0: only the
    latter."""
    keep_checkpoints: int = 2
    """Number of newest checkpoints on the disk, beside that of the highest validation top-1."""

    def check(self) -> None:
        self._require("save_steps", self.save_steps >= 0, "0 or more")
        several = self.keep_checkpoints >= 2
        self._require("keep_checkpoints", several, "2 or more: one may turn out damaged")


@dataclass(frozen=True)
class HealthConfig(Section):
    max_bad_steps: int = 3
    """Steps in a row that may be skipped for a loss or a gradient that is not finite; after more
    the run rolls back or stops."""
    max_rollbacks: int = 2
    """Times a run rolls back to a checkpoint from before its bad steps, and skips the steps
    between; then it stops."""
    checksum_steps: int = 500
    """Steps between two comparisons of the weights over ranks, made before each checkpoint too; 0:
    never."""

    def check(self) -> None:
        self._require_each(["max_bad_steps", "max_rollbacks", "checksum_steps"], 0)


@dataclass(frozen=True)
class LimitConfig(Section):
    """The seconds without progress after which a process writes a failure file and exits."""

    startup_limit: float = 7200
    """Longest start, up to the first step, and longest first pass of each section below."""
    data_limit: float = 600
    """Longest wait for a batch."""
    step_limit: float = 600
    """Longest forward and backward pass, with the wait for the other ranks."""
    evaluation_limit: float = 600
    """Longest evaluation of one batch."""
    checkpoint_limit: float = 1800
    """Longest save of a checkpoint or of the results."""

    def check(self) -> None:
        for name in dataclasses.asdict(self):
            self._require(name, getattr(self, name) > 0, "above 0")

    def sections(self) -> dict[str, float]:
        """Return the limits in seconds by section: startup, data, step, evaluation, checkpoint."""
        limits = dataclasses.asdict(self)
        return {name.removesuffix("_limit"): seconds for name, seconds in limits.items()}
