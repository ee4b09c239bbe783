"""The configuration of a run: frozen dataclasses with every default.

The command line and the DeepSpeed settings are derived from them. Field names are timm's and deit's
flag names: `batch_size` is `--batch-size`. The docstring under a field is its help text: one line
where it can be, since tyro keeps some line breaks. Only commands, runs, replays and the files
called build.py read a `Config`; everything below takes the values it uses.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from fastdeit.config.parse import parse_rand_augment, parse_time_limit, require

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class DataConfig:
    data_path: str = ""
    """Folder of the data set: class folders, WebDataset shards, IDX files, lists (docs/data.md)."""
    train_split: str = "train"
    """Training split in --data-path: a name, a list, or a pattern of shards (s-{000..127}.tar)."""
    val_split: str = "val"
    """Validation split in --data-path, in the same forms as --train-split."""
    data_set: Literal["any", "digits"] = "any"
    """digits: write scikit-learn's digits to --data-path as image files, if they are missing."""
    bad_images: Literal["skip", "error"] = "skip"
    """skip: exclude damaged images, and replace those found in mid-run; error: exit."""
    input_size: int = 224
    """Side of the images that the model sees, in pixels."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    """Mean of each channel for the normalisation, for pixels from 0 to 1."""
    std: tuple[float, float, float] = IMAGENET_STD
    """Standard deviation of each channel for the normalisation."""
    eval_crop_ratio: float = 0.875
    """Evaluation resizes the short side to size / ratio, then crops the centre (timm: 0.9)."""
    eval_input_size: int = 0
    """Image side in evaluation; 0: --input-size. The position embedding is resized to it."""
    decoder: Literal["auto", "cpu", "mixed", "hardware"] = "auto"
    """Decode on the CPU, the GPU's cores (mixed) or its JPEG engine (hardware: other pixels);
    auto takes the CPU with the exact backend."""
    num_workers: int = 0
    """DALI threads per process; 0: this machine's cores divided by its processes."""
    prefetch: int = 2
    """Batches that DALI prepares ahead."""

    def __post_init__(self) -> None:
        require(self.input_size >= 1, "input_size", self.input_size, "1 or more")
        require(
            0 < self.eval_crop_ratio <= 1,
            "eval_crop_ratio",
            self.eval_crop_ratio,
            "above 0, at most 1",
        )
        require(min(self.std) > 0, "std", self.std, "three numbers above 0")
        require(self.eval_input_size >= 0, "eval_input_size", self.eval_input_size, "0 or more")
        require(self.num_workers >= 0, "num_workers", self.num_workers, "0 or more")
        require(self.prefetch >= 1, "prefetch", self.prefetch, "1 or more")


@dataclass(frozen=True)
class AugmentConfig:
    aa: str = "rand-m9-mstd0.5-inc1"
    """RandAugment in timm's notation (rand-mM-nN-mstdS-mmaxX-pP-inc1), none, or 3a (3-Augment
    of DeiT III)."""
    augment_backend: Literal["auto", "exact", "native"] = "auto"
    """exact: equal to PIL and timm bit for bit, on CPU threads; native: DALI's operators, close
    to PIL, also on a GPU."""
    color_jitter: float = 0.3
    """Range of random brightness, contrast and saturation; used with --aa 3a and --aa none."""
    src: bool = False
    """Simple random crop (DeiT III: resize the short side, pad 4 pixels, crop at random)."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Smallest and largest area of the random crop, as a share of the image."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Smallest and largest width / height of the random crop (log-uniform distribution)."""
    hflip: float = 0.5
    """Probability of a horizontal flip."""
    reprob: float = 0.25
    """Probability of RandomErasing."""
    remode: Literal["const", "rand", "pixel"] = "pixel"
    """Erased boxes hold zeros (const), one N(0, 1) colour (rand) or N(0, 1) noise (pixel)."""
    repeated_aug: bool = True
    """Show each image several times in an epoch, augmented differently each time."""
    aug_repeats: int = 2
    """Copies of each image in an epoch with --repeated-aug (deit: 3)."""

    def __post_init__(self) -> None:
        self.operations()
        require(self.aug_repeats >= 1, "aug_repeats", self.aug_repeats, "1 or more")
        require(self.color_jitter >= 0, "color_jitter", self.color_jitter, "0 or more")

    def operations(self) -> dict[str, Any]:
        """The fields of `PlanSpec` that --aa and --color-jitter mean. Raises ValueError for an --aa
        that is not known."""
        if self.aa in ("", "none", "None"):
            return {"ra_layers": 0, "color_jitter": self.color_jitter}
        if self.aa == "3a":
            return {"ra_layers": 0, "three_augment": True, "color_jitter": self.color_jitter}
        return parse_rand_augment(self.aa)


@dataclass(frozen=True)
class MixConfig:
    mixup: float = 0.8
    """Mixup's alpha, the parameter of the Beta distribution; 0: no Mixup."""
    cutmix: float = 1.0
    """CutMix's alpha, the parameter of the Beta distribution; 0: no CutMix."""
    cutmix_minmax: tuple[float, float] | None = None
    """Smallest and largest side of CutMix's box, as shares, in place of the Beta distribution."""
    mixup_prob: float = 1.0
    """Probability that a pair is mixed at all."""
    mixup_switch_prob: float = 0.5
    """Probability of CutMix, not Mixup, when both are on."""
    mixup_group: int = 2
    """Neighbouring samples that share lambda and box: 2 is a pair; 256 is deit's on 4 GPUs."""
    smoothing: float = 0.1
    """Label smoothing."""

    def __post_init__(self) -> None:
        require(0 <= self.smoothing < 1, "smoothing", self.smoothing, "0 or more, below 1")


@dataclass(frozen=True)
class ModelConfig:
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
    """Start from these weights (.safetensors, .pth): the position embedding is resized, a head
    of another size is dropped."""

    def __post_init__(self) -> None:
        require(0 <= self.drop_path < 1, "drop_path", self.drop_path, "0 or more, below 1")
        for name in ("patch_size", "embed_dim", "depth", "num_heads"):
            value = getattr(self, name)
            require(value is None or value > 0, name, value, "1 or more")


@dataclass(frozen=True)
class DistillConfig:
    teacher_model: str = "regnety_160"
    """A timm model; or a program, which runs: torchscript or export (of --teacher-path), or
    module:callable."""
    teacher_path: str = ""
    """The teacher's weights: a local file (.safetensors, .pth, .pt, .pt2)."""
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

    def __post_init__(self) -> None:
        require(
            0 <= self.distillation_alpha <= 1,
            "distillation_alpha",
            self.distillation_alpha,
            "0 to 1",
        )
        require(self.distillation_tau > 0, "distillation_tau", self.distillation_tau, "above 0")
        require(self.cache_period >= 0, "cache_period", self.cache_period, "0 or more")
        kind = self.distillation_type
        require(
            not self.cache or kind != "none",
            "cache",
            self.cache,
            "empty with --distillation-type none",
        )
        labels = self.cache_miss == "ground-truth" and kind == "soft"
        require(
            not labels, "cache_miss", self.cache_miss, "error or live with --distillation-type soft"
        )

    @property
    def needs_teacher(self) -> bool:
        """Whether the teacher itself has to be there."""
        return self.distillation_type != "none" and (not self.cache or self.cache_miss == "live")


@dataclass(frozen=True)
class OptimConfig:
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
    model_ema: bool = True
    """Keep, evaluate and save an exponential moving average (EMA) of the weights."""
    model_ema_decay: float = 0.99996
    """Decay of the EMA per step."""

    def __post_init__(self) -> None:
        require(self.epochs >= 1, "epochs", self.epochs, "1 or more")
        require(
            self.batch_size >= 2 and self.batch_size % 2 == 0,
            "batch_size",
            self.batch_size,
            "an even number, 2 or more",
        )
        require(
            self.micro_batch >= 0 and self.micro_batch % 2 == 0,
            "micro_batch",
            self.micro_batch,
            "an even number, or 0",
        )
        require(self.lr > 0, "lr", self.lr, "above 0")
        require(self.warmup_epochs >= 0, "warmup_epochs", self.warmup_epochs, "0 or more")
        require(
            0 < self.model_ema_decay < 1,
            "model_ema_decay",
            self.model_ema_decay,
            "above 0, below 1",
        )
        require(
            self.clip_grad is None or self.clip_grad > 0, "clip_grad", self.clip_grad, "above 0"
        )

    @property
    def scaled_lr(self) -> float:
        """The peak learning rate: `lr` at a batch of 512, linear in the batch (arXiv 2012.12877,
        section 6)."""
        return self.lr if self.unscale_lr else self.lr * self.batch_size / 512


@dataclass(frozen=True)
class RunConfig:
    output_dir: str = ""
    """Run folder; empty: runs/RECIPE. The same command in the same folder resumes the run."""
    resume: str = ""
    """Checkpoint folder to start from; the same command again resumes from its own checkpoints."""
    seed: int = 0
    """Seed of the plan and of the initial weights."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """auto: bf16 with fp32 master weights on a GPU, fp32 on a CPU."""
    kernels: Literal["auto", "reference"] = "auto"
    """auto: fastdeit's Triton kernels on a GPU; reference: the same in plain torch."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """DeepSpeed's ZeRO: partition optimizer state (1), also gradients (2), also weights (3)."""
    offload_optimizer: bool = False
    """Keep optimizer state and master weights in CPU memory; needs --zero-stage 2 or 3."""
    deepspeed_config: str = ""
    """JSON file with more DeepSpeed settings; those that flags decide must agree."""
    save_steps: int = 0
    """Optimizer steps between checkpoints, in addition to one per epoch; 0: one per epoch only."""
    keep_checkpoints: int = 2
    """Newest checkpoints to keep, in addition to the one with the best validation top-1."""
    eval_epochs: int = 1
    """Epochs between evaluations; the last epoch is always evaluated."""
    log_steps: int = 10
    """Steps between two lines of metrics.jsonl; each line waits for the device."""
    max_bad_steps: int = 3
    """Skipped steps (loss or gradient not finite) allowed in a row; after more, roll back."""
    max_rollbacks: int = 2
    """Rollbacks allowed; after that the run fails. A rollback skips all steps up to the bad one."""
    checksum_steps: int = 500
    """Steps between comparisons of the weights of all ranks; 0: never."""
    stop_after_steps: int = 0
    """Save and stop after so many steps; the same command resumes. 0: run to the end."""
    time_limit: str = ""
    """Save and stop after this time: minutes, M:SS, H:MM:SS, D-H, D-H:MM, D-H:MM:SS."""

    def __post_init__(self) -> None:
        require(0 <= self.seed < 2**32, "seed", self.seed, "0 to 4294967295")
        offloads = self.offload_optimizer
        require(
            not offloads or self.zero_stage >= 2,
            "zero_stage",
            self.zero_stage,
            "2 or 3 with --offload-optimizer",
        )
        for name in (
            "save_steps",
            "stop_after_steps",
            "max_bad_steps",
            "max_rollbacks",
            "checksum_steps",
        ):
            require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        require(
            self.keep_checkpoints >= 2,
            "keep_checkpoints",
            self.keep_checkpoints,
            "2 or more: one may turn out damaged",
        )
        for name in ("eval_epochs", "log_steps"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        parse_time_limit(self.time_limit)


@dataclass(frozen=True)
class LimitConfig:
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

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            require(value > 0, name, value, "above 0")

    def sections(self) -> dict[str, float]:
        """The limits in seconds by section: startup, data, step, evaluation, checkpoint."""
        return {
            name.removesuffix("_limit"): value for name, value in dataclasses.asdict(self).items()
        }


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
    limits: LimitConfig = field(default_factory=LimitConfig)

    def __post_init__(self) -> None:
        smoothing = self.mix.smoothing
        require(
            not (self.distill.bce_loss and smoothing > 0),
            "smoothing",
            smoothing,
            "0 with --bce-loss",
        )

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Plain nested dict, as config.yaml holds it."""
        return _plain(dataclasses.asdict(self))

    def replace(self, **sections: dict[str, Any]) -> "Config":
        """A copy with fields of some sections changed: `config.replace(optim={"epochs": 3})`."""
        changed = {
            name: dataclasses.replace(getattr(self, name), **fields)
            for name, fields in sections.items()
        }
        return dataclasses.replace(self, **changed)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
