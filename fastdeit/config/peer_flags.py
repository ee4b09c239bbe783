"""The flags of deit's main.py and timm's train.py whose names are no flags of fastdeit, and the
meaning of each here.

Sources: facebookresearch/deit 7e160fe (main.py, run_with_submitit.py);
huggingface/pytorch-image-models aa4b5850 (train.py).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

ANY = "*"
"""The sign for every value of a flag."""

SWITCH = ""
"""The sign for a flag without a value."""


@dataclass(frozen=True)
class PeerFlag:
    """A flag of deit or timm."""

    advice: str = ""
    """The reason why a value that is not in `accepts` is refused, and what to do."""
    accepts: Mapping[str, str] = field(default_factory=dict)
    """The flags of fastdeit with the same meaning, by accepted value (a number in any form): "" if
    a run does it anyway; {} stands for the value."""

    def translate(self, value: str) -> list[str] | None:
        """Return the flags of fastdeit for a value, or None if it is not accepted."""
        own = self.accepts.get(_shorten_number(value), self.accepts.get(ANY))
        return None if own is None else [part.format(value) for part in own.split()]


def _shorten_number(text: str) -> str:
    """Return a whole number without a decimal point, 1.0 as 1; do not change other text."""
    return re.sub(r"\.0*$", "", text) if re.fullmatch(r"\d+\.0*", text) else text


def _built(*values: str) -> dict[str, str]:
    """Return a table of accepted values that name what a run does anyway."""
    return dict.fromkeys(values, "")


def _same_as(flag: str) -> dict[str, str]:
    """Return a table that accepts every value of a flag that has another name here."""
    return {ANY: f"{flag} {{}}"}


_COMMAND = {
    "-c": PeerFlag(accepts=_same_as("--config")),
    "--eval": PeerFlag("a run evaluates by itself; fastdeit evaluate scores a checkpoint"),
    "--start-epoch": PeerFlag("a checkpoint holds its step: omit it", _built("0")),
    "--no-resume-opt": PeerFlag("start a new run, --finetune RUN/model.safetensors"),
    "--output": PeerFlag("use --output-dir, the run folder itself"),
    "--experiment": PeerFlag("use --output-dir runs/NAME"),
    "--log-interval": PeerFlag("use --log-steps, which counts optimizer steps"),
    "--val-interval": PeerFlag("use --eval-epochs; a checkpoint is saved after every epoch"),
    "--recovery-interval": PeerFlag("use --save-steps, which counts optimizer steps"),
    "--checkpoint-hist": PeerFlag("use --keep-checkpoints: the newest ones, and the best"),
    "--eval-metric": PeerFlag("the best checkpoint is that of top-1 accuracy", _built("top1")),
    "--save-images": PeerFlag("draw the samples with fastdeit preview, without training"),
    "--wandb-resume-id": PeerFlag("a resumed run continues its own run at wandb: omit it"),
}

_LAUNCHER = {
    "--device": PeerFlag(
        "GPUs are used if there are any; DS_ACCELERATOR=cpu before the command uses the CPU",
        _built("cuda"),
    ),
    "--distributed": PeerFlag(accepts=_built(SWITCH)),
    "--world-size": PeerFlag("the deepspeed launcher sets it: --num_gpus", _built("1")),
    "--dist-url": PeerFlag("the deepspeed launcher sets it (docs/machines.md)", _built("env://")),
    "--nodes --ngpus --timeout --partition --comment --job-dir": PeerFlag(accepts=_built(ANY)),
    "--use-volta32": PeerFlag(accepts=_built(SWITCH)),
    "--device-modules": PeerFlag("devices are CUDA and the CPU: omit it"),
    "--synchronize-step": PeerFlag("steps are not synchronised: omit it"),
    "--no-ddp-bb": PeerFlag("there is no DDP, DeepSpeed trains: omit it"),
}

_DATA = {
    "--data-dir": PeerFlag(accepts=_same_as("--data-path")),
    "--data-set": PeerFlag(
        "write the data set as class folders or lists, and name its folder as --data-path",
        {"IMNET": "--data-set any", "CIFAR": "--data-set cifar100"}
        | {name: f"--data-set {name}" for name in ("any", "digits", "cifar10", "cifar100")},
    ),
    "--inat-category": PeerFlag("the class folders or lists in --data-path are the classes"),
    "--dataset": PeerFlag(
        "--data-path finds the format itself (docs/data.md): omit it",
        {f"torch/{name}": f"--data-set {name}" for name in ("cifar10", "cifar100")},
    ),
    "--dataset-download --dataset-trust-remote-code": PeerFlag(
        "download the data set first, then name its folder as --data-path"
    ),
    "--train-num-samples --val-num-samples": PeerFlag("the samples of shards are counted: omit it"),
    "--class-map": PeerFlag("write classes.txt beside the splits (docs/data.md)"),
    "--input-key --target-key": PeerFlag("name the samples of shards as in docs/data.md"),
    "--input-img-mode": PeerFlag("images are decoded as RGB: omit it", _built("RGB")),
    "--num-classes": PeerFlag("the data set decides the number of classes: omit it"),
    "--in-chans": PeerFlag("images are decoded as RGB", _built("3")),
    "--img-size": PeerFlag(accepts=_same_as("--input-size")),
    "--crop-pct": PeerFlag(accepts=_same_as("--eval-crop-ratio")),
    "--interpolation --train-interpolation": PeerFlag(
        "images are resized with bicubic interpolation", _built("bicubic")
    ),
    "--workers -j": PeerFlag(accepts=_same_as("--num-workers")),
    "--pin-mem --no-pin-mem --no-prefetcher --use-multi-epochs-loader": PeerFlag(
        accepts=_built(SWITCH)
    ),
    "--worker-seeding": PeerFlag("no draw depends on a worker: omit it", _built("all")),
    "--dist-eval": PeerFlag(accepts=_built(SWITCH)),
    "-vb --validation-batch-size": PeerFlag("evaluation takes the batches of training: omit it"),
    "--tta": PeerFlag("evaluation sees each image once", _built("0")),
    "--train-img-sizes --train-batch-sizes --train-size-probs --train-size-schedule "
    "--train-size-schedule-spread --train-size-random-mix --variable-batch-loss-scale": PeerFlag(
        "every image has the side --input-size; for another one --finetune a finished run"
    ),
    "--train-batches-per-epoch --train-steps-per-epoch": PeerFlag(
        "the images decide the steps of an epoch; --stop-after-steps pauses a run"
    ),
    "--naflex-loader --naflex-train-seq-lens --naflex-max-seq-len --naflex-patch-sizes "
    "--naflex-patch-size-probs --naflex-loss-scale --naflex-patchify-channels-first": PeerFlag(
        "images are square, of the side --input-size: omit it"
    ),
}

_AUGMENTATION = {
    "--ThreeAugment": PeerFlag(accepts={SWITCH: "--aa 3a --reprob 0"}),
    "--aug-repeats": PeerFlag(accepts={"0": "--no-repeated-aug", ANY: "--aug-repeats {}"}),
    "--aug-splits": PeerFlag("a sample has one view", _built("0")),
    "--jsd-loss": PeerFlag("a sample has one view; the losses: --smoothing, --bce-loss"),
    "--split-bn": PeerFlag("a sample has one view: omit it"),
    "--resplit": PeerFlag(accepts=_built(SWITCH)),
    "--recount": PeerFlag("RandomErasing erases one box", _built("1")),
    "--no-aug": PeerFlag(
        "the nearest is --aa none --color-jitter 0 --scale 1 1 --hflip 0 --reprob 0"
    ),
    "--train-crop-mode": PeerFlag("the crop is RandomResizedCrop, or --src", _built("rrc")),
    "--vflip": PeerFlag("images are never flipped vertically", _built("0")),
    "--color-jitter-prob --grayscale-prob --gaussian-blur-prob": PeerFlag(
        "--aa 3a (3-Augment) has grey, blur and colour jitter"
    ),
    "--mixup-mode": PeerFlag(
        "use --mixup-group: 2 draws for each pair, 256 as deit for a batch of 256 on a GPU",
        {"batch": "", "pair": "--mixup-group 2"},
    ),
    "--mixup-off-epoch": PeerFlag("samples are mixed in every epoch (--mixup-prob)", _built("0")),
}

_MODEL = {
    "-b": PeerFlag(accepts=_same_as("--batch-size")),
    "--grad-accum-steps": PeerFlag(
        "use --micro-batch, samples for each device at once; the rest of --batch-size accumulates",
        _built("1"),
    ),
    "--pretrained --pretrained-path --initial-checkpoint": PeerFlag(
        "use --finetune with a file, an address, hf-hub:OWNER/NAME or the name of a timm model"
    ),
    "--gp": PeerFlag("a model has its own pooling: omit it"),
    "--model-kwargs": PeerFlag("use --patch-size, --embed-dim, --depth, --num-heads, --qkv-bias"),
    "--head-init-scale --head-init-bias": PeerFlag(
        "heads have the initial weights of deit: omit it"
    ),
    "--drop": PeerFlag("there is no dropout; use --drop-path", _built("0")),
    "--drop-connect": PeerFlag("use --drop-path"),
    "--drop-block": PeerFlag("use --drop-path"),
    "--train-mode": PeerFlag(accepts=_built(SWITCH)),
    "--no-train-mode": PeerFlag("DropPath acts in training; --drop-path 0 turns it off"),
    "--attn-only": PeerFlag(accepts={SWITCH: "--trainable attention"}),
    "--bn-momentum --bn-eps --sync-bn": PeerFlag("a ConvNet keeps its own batch norm: omit it"),
    "--dist-bn": PeerFlag(
        "batch statistics are averaged over the processes after every step: omit it"
    ),
    "--channels-last --fuser --fast-norm": PeerFlag("--kernels auto has fused kernels: omit it"),
    "--torchscript": PeerFlag("use --compile on"),
    "--torchcompile": PeerFlag(
        "the compiler is inductor", {SWITCH: "--compile on", "inductor": "--compile on"}
    ),
    "--torchcompile-mode": PeerFlag("--compile on has the mode default", _built("default")),
    "--amp": PeerFlag(accepts={SWITCH: "--precision auto"}),
    "--amp-dtype": PeerFlag("use --precision bf16", {"bfloat16": "--precision auto"}),
    "--model-dtype": PeerFlag("use --precision fp32 or bf16 (master weights are fp32)"),
    "--model-ema-force-cpu": PeerFlag(
        "the EMA is divided among the processes, with the optimizer's state: omit it"
    ),
}

_OPTIMIZER = {
    "--opt": PeerFlag(
        "the optimizer is AdamW or LAMB",
        {
            "adamw": "--opt adamw",
            "fusedadamw": "--opt adamw",
            "lamb": "--opt lamb",
            "fusedlamb": "--opt lamb",
        },
    ),
    "--momentum": PeerFlag(accepts=_built(ANY)),  # neither adamw nor lamb has one
    "--opt-kwargs": PeerFlag("use --opt-eps and --opt-betas"),
    "--clip-mode": PeerFlag("--clip-grad is the largest global norm", _built("norm")),
    "--layer-decay-min-scale": PeerFlag("--layer-decay has no lower limit", _built("0")),
    "--layer-decay-no-opt-scale": PeerFlag("every block is trained: omit it"),
    "--lr-base --lr-base-size --lr-base-scale": PeerFlag(
        "--lr is for a batch of 512: with linear scaling, lr-base x 512 / lr-base-size"
    ),
    "--sched": PeerFlag("the schedule is a cosine", _built("cosine")),
    "--warmup-prefix": PeerFlag("--warmup-epochs are part of the cosine: omit it"),
    "--cooldown-epochs": PeerFlag(accepts=_built(ANY)),  # deit stops before them
    "--decay-epochs --decay-rate --dr --patience-epochs": PeerFlag(accepts=_built(ANY)),
    "--decay-milestones": PeerFlag("a cosine has no milestones: omit it"),
    "--lr-noise": PeerFlag("the learning rate has no noise: omit it"),
    "--lr-noise-pct --lr-noise-std": PeerFlag(accepts=_built(ANY)),  # no effect without --lr-noise
    "--lr-cycle-mul --lr-cycle-limit --lr-k-decay": PeerFlag(
        "there is one cosine, over --epochs", _built("1")
    ),
    "--lr-cycle-decay": PeerFlag(accepts=_built(ANY)),  # no effect on one cycle
    "--epoch-repeats": PeerFlag("use more --epochs", _built("0")),
}

_LOSS = {
    "--bce-sum --bce-target-thresh --bce-pos-weight": PeerFlag(
        "--bce-loss is DeiT III's: the mean over classes, targets above 0 count as 1"
    ),
    "--kd-model-name": PeerFlag(
        "use --teacher-model NAME --pretrained-teacher, or --teacher-path FILE"
    ),
    "--kd-distill-type": PeerFlag("a distillation token learns from the teacher", _built("token")),
    "--kd-loss-type": PeerFlag("soft distillation is the KL divergence", _built("kl")),
    "--kd-token-distill-type": PeerFlag(accepts=_same_as("--distillation-type")),
    "--kd-temperature": PeerFlag(accepts=_same_as("--distillation-tau")),
    "--distill-loss-weight --task-loss-weight": PeerFlag(
        "use --distillation-alpha A: 1 - A for the labels, A for the teacher"
    ),
    "--kd-student-feature-dim --kd-teacher-feature-dim": PeerFlag(
        "the teacher's logits are learned, not its features: omit it"
    ),
}

_GROUPS = (_COMMAND, _LAUNCHER, _DATA, _AUGMENTATION, _MODEL, _OPTIMIZER, _LOSS)

PEER_FLAGS: dict[str, PeerFlag] = {
    name: flag for group in _GROUPS for names, flag in group.items() for name in names.split()
}
"""Every such flag, by name with dashes."""
