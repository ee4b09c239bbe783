"""The configuration of a run: frozen dataclasses with every default.

The command line and the DeepSpeed settings are derived from them. Field names are timm's and deit's
flag names: `batch_size` is `--batch-size`. The docstring under a field is its help text: one line
where it can be, since tyro keeps some line breaks. Only commands, runs, replays and the files
called build.py read a `Config`; everything below takes the values it uses.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from fastdeit.config.parse import MAX_TEACHER_SIZE, Section, parse_time_limit, require
from fastdeit.config.samples import SIMPLE_CROP_LEAST, AugmentConfig, DataConfig, MixConfig


@dataclass(frozen=True)
class ModelConfig(Section):
    model: str = "deit_small_distilled_patch16_224"
    """deit_{tiny,small,base}[_distilled]_patch16_{224,384}, or any timm model with
    --distillation-type none."""
    patch_size: int | None = None
    """Patch side in pixels, in place of the model's own."""
    embed_dim: int | None = None
    """Width, in place of the model's own."""
    depth: int | None = None
    """Number of blocks, in place of the model's own."""
    num_heads: int | None = None
    """Attention heads, in place of the model's own."""
    qkv_bias: bool = False
    """Bias in the query, key and value projection (as in deit, timm and published weights)."""
    drop_path: float = 0.1
    """Stochastic depth: drop rate of the last block, rising linearly from 0 in the first."""
    finetune: str = ""
    """Start from these weights (.safetensors, .pth, a run folder): the position embedding is
    resized, heads of other classes stay as initialised."""
    pos_embed_antialias: bool = True
    """Resize the position embedding of --finetune with timm's antialiased filter;
    --no-pos-embed-antialias: with torch's plain bicubic one, as in deit's code."""

    def check(self) -> None:
        self._require("drop_path", 0 <= self.drop_path < 1, "at least 0 and below 1")
        for name in ("patch_size", "embed_dim", "depth", "num_heads"):
            value = getattr(self, name)
            self._require(name, value is None or value > 0, "1 or more")


@dataclass(frozen=True)
class DistillConfig(Section):
    teacher_model: str = "regnety_160"
    """A timm model; or a program, which runs: torchscript or export (of --teacher-path), or
    module:callable."""
    teacher_path: str = ""
    """The teacher's weights: a local file (.safetensors, .pth, .pt, .pt2)."""
    teacher_mean: tuple[float, float, float] | None = None
    """Mean of each channel for the teacher, in place of its own (docs/teachers.md)."""
    teacher_std: tuple[float, float, float] | None = None
    """Standard deviation of each channel for the teacher, in place of its own."""
    teacher_input_size: int | None = None
    """Side of the teacher's images in pixels, in place of its own."""
    distillation_type: Literal["none", "soft", "hard"] = "hard"
    """none, soft (Kullback-Leibler divergence), or hard (cross-entropy to the teacher's class)."""
    distillation_alpha: float = 0.5
    """Weight of the distillation loss; the label loss has the weight 1 - alpha."""
    distillation_tau: float = 3.0
    """Temperature of soft distillation."""
    distillation_legacy: bool = False
    """Divide the soft loss by batch size and classes, as deit's code does, not by batch size."""
    cache: str = ""
    """Teacher cache (fastdeit cache build) to read in place of running the teacher."""
    cache_miss: Literal["error", "live", "ground-truth"] = "error"
    """For a record that is missing in --cache: exit, run the teacher, or take the label with
    the larger share (hard distillation only)."""
    cache_period: int = 0
    """Repeat the samples every so many epochs, for a smaller teacher cache; 0: never."""
    bce_loss: bool = False
    """Binary cross-entropy to the mixed targets (DeiT III); needs --smoothing 0."""

    def check(self) -> None:
        self._check_view()
        self._require("distillation_alpha", 0 <= self.distillation_alpha <= 1, "from 0 to 1")
        self._require("distillation_tau", self.distillation_tau > 0, "above 0")
        self._require("cache_period", self.cache_period >= 0, "0 or more")
        kind = self.distillation_type
        unused = bool(self.cache) and kind == "none"
        self._require("cache", not unused, "empty with --distillation-type none")
        labels_only = self.cache_miss == "ground-truth" and kind == "soft"
        allowed = "error or live with --distillation-type soft"
        self._require("cache_miss", not labels_only, allowed)

    def _check_view(self) -> None:
        mean, std, size = self.teacher_mean, self.teacher_std, self.teacher_input_size
        ok = mean is None or all(0 <= value <= 1 for value in mean)
        self._require("teacher_mean", ok, "three numbers from 0 to 1")
        ok = std is None or all(0 < value <= 1 for value in std)
        self._require("teacher_std", ok, "three numbers above 0, at most 1")
        ok = size is None or 1 <= size <= MAX_TEACHER_SIZE
        self._require("teacher_input_size", ok, f"1 to {MAX_TEACHER_SIZE} pixels")

    @property
    def teacher_view(self) -> dict[str, Any]:
        """Return the mean, std and input size that are asked of the teacher, by timm's names."""
        view = {
            "mean": self.teacher_mean,
            "std": self.teacher_std,
            "input_size": self.teacher_input_size,
        }
        return {name: value for name, value in view.items() if value is not None}

    @property
    def needs_teacher(self) -> bool:
        """Return True if the run has to load the teacher itself."""
        return self.distillation_type != "none" and (not self.cache or self.cache_miss == "live")


@dataclass(frozen=True)
class OptimConfig(Section):
    epochs: int = 300
    """Training epochs."""
    batch_size: int = 1024
    """Global batch size: over all devices and accumulated micro-batches."""
    micro_batch: int = 0
    """Samples per device and forward pass; the rest is accumulated. 0: no accumulation."""
    lr: float = 5e-4
    """Learning rate for a batch of 512; scaled by --batch-size / 512."""
    unscale_lr: bool = False
    """Do not scale --lr by the batch size."""
    weight_decay: float = 0.05
    """Weight decay; not for biases, norms, the position embedding and the tokens."""
    dist_token_decay: bool = False
    """Weight decay for the distillation token too, as in deit's code."""
    opt_eps: float = 1e-8
    """AdamW's epsilon."""
    opt_betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's betas."""
    clip_grad: float | None = None
    """Clip the global gradient norm to this value."""
    layer_decay: float | None = None
    """Learning-rate factor from each block to the block below it (for fine-tuning)."""
    warmup_epochs: float = 5
    """Epochs of linear warm-up."""
    warmup_lr: float = 1e-6
    """Learning rate at the start of the warm-up; not scaled by the batch size."""
    min_lr: float = 1e-5
    """Learning rate at the end of the cosine schedule; not scaled by the batch size."""
    sched_on_updates: bool = True
    """A new learning rate every step; --no-sched-on-updates: every epoch, as in deit and timm."""
    sched_lag: int = 0
    """Epochs that the learning rate is late, with --no-sched-on-updates (deit's code: 1)."""
    model_ema: bool = True
    """Keep, evaluate and save an exponential moving average (EMA) of the weights."""
    model_ema_decay: float = 0.99996
    """Decay of the EMA per step."""
    model_ema_warmup: bool = False
    """Raise the decay of the EMA from 0, as timm does: for runs shorter than the EMA's memory."""

    def check(self) -> None:
        self._require("epochs", self.epochs >= 1, "1 or more")
        self._require_pairs("batch_size")
        if self.micro_batch:
            self._require_pairs("micro_batch")
        self._require("lr", self.lr > 0, "above 0")
        self._require("opt_eps", self.opt_eps > 0, "above 0")
        shares = all(0 <= beta < 1 for beta in self.opt_betas)
        self._require("opt_betas", shares, "two numbers, at least 0 and below 1")
        self._require_each(["weight_decay", "warmup_epochs"], 0)
        decay = self.layer_decay
        self._require("layer_decay", decay is None or 0 < decay <= 1, "above 0 and at most 1")
        self._require_rates()
        lags = self.sched_lag >= 0 and (self.sched_lag == 0 or not self.sched_on_updates)
        self._require("sched_lag", lags, "0, or more with --no-sched-on-updates")
        self._require("model_ema_decay", 0 < self.model_ema_decay < 1, "above 0 and below 1")
        self._require("clip_grad", self.clip_grad is None or self.clip_grad > 0, "above 0")

    def _require_rates(self) -> None:
        """Raise ValueError if the warm-up begins above the peak, or the schedule ends above it.

        Under the defaults of both --lr and --min-lr only a tiny batch has a lower peak: then the
        rate stays at the peak (`final_lr`).
        """
        peak = self.describe_peak()
        chosen = self.lr != OptimConfig.lr or self.min_lr != OptimConfig.min_lr
        falls = not chosen or 0 <= self.min_lr <= self.scaled_lr
        self._require("min_lr", falls, f"0 or more, at most the peak rate, {peak}")
        rises = self.warmup_epochs == 0 or 0 <= self.warmup_lr <= self.scaled_lr
        self._require("warmup_lr", rises, f"0 or more, at most the peak rate, {peak}")

    def describe_peak(self) -> str:
        """Return how the peak learning rate is computed."""
        scale = "" if self.unscale_lr else f" x {self.batch_size} / 512 = {self.scaled_lr:g}"
        return f"--lr {self.lr:g}{scale}"

    @property
    def final_lr(self) -> float:
        """Learning rate at the end: `min_lr`, at most the peak."""
        return min(self.min_lr, self.scaled_lr)

    @property
    def scaled_lr(self) -> float:
        """Peak learning rate: `lr` at a batch of 512, linear in the batch (arXiv 2012.12877,
        section 6)."""
        return self.lr if self.unscale_lr else self.lr * self.batch_size / 512


@dataclass(frozen=True)
class RunConfig(Section):
    output_dir: str = ""
    """Where config, log, checkpoints and weights go; empty: runs/RECIPE. The same command in the
    same folder resumes."""
    seed: int = 0
    """Seed of everything random."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """auto: bf16 with fp32 master weights on a GPU, fp32 on a CPU."""
    kernels: Literal["auto", "reference"] = "auto"
    """auto: own Triton kernels on a GPU; reference: the same in plain torch, for comparison."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """DeepSpeed's partitioning: optimizer state (1), gradients too (2), weights too (3)."""
    offload_optimizer: bool = False
    """Keep the optimizer's state and the master weights in CPU memory, and step there; with
    --zero-stage 2 or 3."""
    deepspeed_config: str = ""
    """A JSON file in DeepSpeed's form that sets more of its fields; what flags decide must be the
    same there."""
    eval_epochs: int = 1
    """Evaluate every so many epochs, and after the last one."""
    log_steps: int = 10
    """Steps between two lines of metrics.jsonl, each with the values of all its steps; to write
    one, the loop waits for the device. A checkpoint writes one, too."""
    stop_after_steps: int = 0
    """Save and stop after so many steps of this run; the same command resumes there. 0: run to the
    end."""
    time_limit: str = ""
    """Save and stop after so much time, in Slurm's forms: minutes, M:SS, H:MM:SS, D-H, D-H:MM,
    D-H:MM:SS. Empty: none."""

    def check(self) -> None:
        self._require("seed", 0 <= self.seed < 2**32, "0 to 4294967295")
        partitioned = self.zero_stage >= 2 or not self.offload_optimizer
        self._require("zero_stage", partitioned, "2 or 3 with --offload-optimizer")
        self._require_each(["eval_epochs", "log_steps"], 1)
        self._require_each(["stop_after_steps"], 0)
        parse_time_limit(self.time_limit)


@dataclass(frozen=True)
class CheckpointConfig(Section):
    resume: str = ""
    """A checkpoint folder to start from, instead of the newest one of --output-dir. The same
    command, given again, resumes from its own."""
    save_steps: int = 0
    """A checkpoint every so many optimizer steps, beside one each epoch; 0: only each epoch."""
    keep_checkpoints: int = 2
    """Newest checkpoints that stay on the disk, beside the one of the highest validation top-1."""

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
    """Seconds without progress after which a process writes a failure file and exits."""

    startup_limit: float = 7200
    """From the start to the first step, and the first pass of each section below."""
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


@dataclass(frozen=True)
class Config:
    """A whole run."""

    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    mix: MixConfig = field(default_factory=MixConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    health: HealthConfig = field(default_factory=HealthConfig)
    limits: LimitConfig = field(default_factory=LimitConfig)

    def __post_init__(self) -> None:
        for section in dataclasses.fields(self):
            getattr(self, section.name).check()
        smoothed = self.distill.bce_loss and self.mix.smoothing > 0
        require(not smoothed, "smoothing", self.mix.smoothing, "0 with --bce-loss")
        size = self.data.input_size
        padded = size >= SIMPLE_CROP_LEAST or not self.augment.src
        require(padded, "input_size", size, f"{SIMPLE_CROP_LEAST} or more with --src")

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Return plain nested dicts, as config.yaml holds them."""
        return _plain(dataclasses.asdict(self))

    def replace(self, **sections: dict[str, Any]) -> "Config":
        """Return a copy with fields of sections changed: `config.replace(optim={"epochs": 3})`."""
        changed = {}
        for name, fields in sections.items():
            changed[name] = dataclasses.replace(getattr(self, name), **fields)
        return dataclasses.replace(self, **changed)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
