"""Every default of a run, once: frozen dataclasses from which the command line and the DeepSpeed
dict are derived.

Field names are timm's and deit's flag names, flat: `--batch-size`, `--drop-path`, ... The docstring
under a field is its help text. Only the entry and the builders in run.py see a `Config`; everything
below takes the values it uses.
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
    """Folder with images in class folders, WebDataset shards, IDX files, or lists of path and label
    (docs/data.md)."""
    train_split: str = "train"
    """Part of --data-path to train on: a name, a pattern of shards (train-{0000..1023}.tar), a .csv
    or .parquet list."""
    val_split: str = "val"
    """Part of --data-path to evaluate on, as --train-split."""
    data_set: Literal["any", "digits"] = "any"
    """`digits` writes scikit-learn's digits to --data-path as image files if they are not there
    yet."""
    bad_images: Literal["skip", "error"] = "skip"
    """Damaged images: list them, leave them out and replace them deterministically when found in
    mid-run; or stop."""
    input_size: int = 224
    """Side of the images the model sees, in pixels."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    eval_crop_ratio: float = 0.875
    """Evaluation resizes the short side to input_size / ratio and crops the centre (timm reports
    DeiT with 0.9)."""
    eval_input_size: int = 0
    """Side of the images in evaluation; 0 is --input-size. The student resizes its position
    embedding to it."""
    decoder: Literal["auto", "cpu", "mixed", "hardware"] = "auto"
    """Decode on the CPU, on the GPU's cores, or by its JPEG engine, whose pixels differ; auto: cpu
    with the exact backend."""
    num_workers: int = 0
    """DALI threads per process; 0 shares the machine's cores among its processes."""
    prefetch: int = 2
    """Batches that DALI runs ahead."""

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
    """RandAugment in timm's notation (rand-mM-nN-mstdS-mmaxX-pP-inc1), `none`, or `3a`: DeiT III's
    3-Augment."""
    augment_backend: Literal["auto", "exact", "native"] = "auto"
    """exact: equal to PIL and timm bit for bit, on CPU threads; native: DALI's operators, close to
    it, also on a GPU."""
    color_jitter: float = 0.3
    """Range of random brightness, contrast and saturation; acts with --aa 3a and --aa none, as in
    deit and timm."""
    src: bool = False
    """Simple random crop of DeiT III (short side to input_size, 4 pixels of reflection) instead of
    the resized crop."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Share of the area that the random crop takes."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Width / height of the random crop, drawn log-uniformly."""
    hflip: float = 0.5
    """Probability of a horizontal flip."""
    reprob: float = 0.25
    """Probability of RandomErasing."""
    remode: Literal["const", "rand", "pixel"] = "pixel"
    """What fills an erased box: zeros, one N(0, 1) colour, or N(0, 1) per pixel, all after
    normalisation."""
    repeated_aug: bool = True
    """Several differently augmented copies of each image in an epoch."""
    aug_repeats: int = 2
    """Copies per image with --repeated-aug (deit: 3)."""

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
    """Beta parameter of Mixup; 0 turns it off."""
    cutmix: float = 1.0
    """Beta parameter of CutMix; 0 turns it off."""
    cutmix_minmax: tuple[float, float] | None = None
    """Smallest and largest side of CutMix's box as a share of the image, instead of the Beta law.
    """
    mixup_prob: float = 1.0
    mixup_switch_prob: float = 0.5
    """Probability of CutMix when both are on."""
    mixup_group: int = 2
    """Neighbouring samples that share lambda and box: 2 is a pair; 256 reproduces deit on 4 GPUs,
    whatever the GPU count."""
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
    embed_dim: int | None = None
    depth: int | None = None
    num_heads: int | None = None
    """These four replace the named model's own sizes."""
    qkv_bias: bool = False
    """Bias on the query, key and value projection (deit, timm and all published weights have it).
    """
    drop_path: float = 0.1
    """Stochastic depth: the last block's rate; the first never drops."""
    finetune: str = ""
    """Weights to start from (.safetensors or .pth); the position embedding is resized, a head of
    another size dropped."""

    def __post_init__(self) -> None:
        require(0 <= self.drop_path < 1, "drop_path", self.drop_path, "0 or more, below 1")
        for name in ("patch_size", "embed_dim", "depth", "num_heads"):
            value = getattr(self, name)
            require(value is None or value > 0, name, value, "1 or more")


@dataclass(frozen=True)
class DistillConfig:
    teacher_model: str = "regnety_160"
    """A timm model; or a program, which runs: torchscript, export (the kind of --teacher-path's
    file), module:callable."""
    teacher_path: str = ""
    """The teacher's weights, a local file (.safetensors, .pth, .pt, .pt2)."""
    distillation_type: Literal["none", "soft", "hard"] = "hard"
    distillation_alpha: float = 0.5
    """Weight of the distillation loss; the label loss gets the rest."""
    distillation_tau: float = 3.0
    """Temperature of soft distillation."""
    distillation_legacy: bool = False
    """Soft loss divided by batch and classes as deit's code does, instead of by the batch."""
    cache: str = ""
    """A folder of recorded answers (fastdeit cache build), which are read instead of running the
    teacher."""
    cache_miss: Literal["error", "live", "ground-truth"] = "error"
    """Where --cache has no whole record: stop, run the teacher, or take the label with the larger
    share (hard only)."""
    cache_period: int = 0
    """Epochs after which the samples repeat, so that a cache of as many is enough; 0: never."""
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
    batch_size: int = 1024
    """Global batch: over all devices and accumulation."""
    micro_batch: int = 0
    """Samples per device and forward pass; 0 takes the device's whole share of the batch. Smaller
    values accumulate."""
    lr: float = 5e-4
    """Learning rate at a batch of 512; scaled by batch_size / 512."""
    unscale_lr: bool = False
    """Take --lr as it is."""
    weight_decay: float = 0.05
    """Not applied to biases, norms, position embedding and tokens."""
    opt_eps: float = 1e-8
    opt_betas: tuple[float, float] = (0.9, 0.999)
    clip_grad: float | None = None
    """Largest global gradient norm."""
    layer_decay: float | None = None
    """Learning-rate factor from each block to the one below it (fine-tuning)."""
    warmup_epochs: float = 5
    warmup_lr: float = 1e-6
    min_lr: float = 1e-5
    """Start of the warm-up and end of the cosine, neither scaled by the batch."""
    model_ema: bool = True
    """Keep, evaluate and save an exponential moving average of the weights."""
    model_ema_decay: float = 0.99996

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
    """Where config, log, checkpoints and weights go; empty: runs/RECIPE. The same command in the
    same folder resumes."""
    resume: str = ""
    """A checkpoint folder to start from, instead of the newest one of --output-dir. The same
    command goes on from its own."""
    seed: int = 0
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
    save_steps: int = 0
    """A checkpoint every so many optimizer steps, beside one each epoch; 0: only each epoch."""
    keep_checkpoints: int = 2
    """Newest checkpoints that stay on the disk, beside the one of the highest validation top-1."""
    eval_epochs: int = 1
    """Evaluate every so many epochs, and after the last one."""
    log_steps: int = 10
    """Steps between two lines of metrics.jsonl; to write one, the loop waits for the device."""
    max_bad_steps: int = 3
    """Steps in a row that may be skipped for a loss or a gradient that is not finite; after more
    the run goes back or stops."""
    max_rollbacks: int = 2
    """Times a run goes back to a checkpoint from before its bad steps, and passes over the steps
    between; then it stops."""
    checksum_steps: int = 500
    """Steps between two comparisons of the weights over ranks, made before each checkpoint too; 0:
    never."""
    stop_after_steps: int = 0
    """Save and stop after so many steps of this run; the same command goes on from there. 0: run to
    the end."""
    time_limit: str = ""
    """Save and stop after so much time, in Slurm's forms: minutes, M:SS, H:MM:SS, D-H, D-H:MM,
    D-H:MM:SS. Empty: none."""

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
    """Seconds without progress after which a process writes down where it stands, and ends."""

    startup_limit: float = 7200
    """From the start to the first step, and the first pass of each section below: indexing,
    compiling."""
    data_limit: float = 600
    """Wait for a batch."""
    step_limit: float = 600
    """A forward and a backward pass, with the waiting for the other ranks."""
    evaluation_limit: float = 600
    """A batch of evaluation."""
    checkpoint_limit: float = 1800
    """Saving a checkpoint, or what a run leaves at its end."""

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
