"""The checklist of DeiT: every ingredient that Touvron et al. 2021 (arXiv 2012.12877) specify, with
its place in the paper and the flag that gives it.

Table 9 has the settings of training, table 1 the sizes. Where deit's code (facebookresearch/deit)
differs from the paper, or decides what the paper does not specify, `note` names it.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Item:
    """A row of the checklist; flag: gives what the paper has, "" if no flag does."""

    name: str
    section: str
    title: str
    paper: str
    source: str
    flag: str = ""
    note: str = ""


_DISTILLED = "--model deit_small_distilled_patch16_224"

CHECKLIST = (
    Item(
        "distillation_token",
        "model",
        "distillation token",
        "a learned token with a head of its own",
        "section 4, figure 2",
        _DISTILLED,
    ),
    Item(
        "positions",
        "model",
        "position embedding",
        "learned, patches + 2",
        "sections 3 and 4",
        f"{_DISTILLED} --registers 0 --trainable all",
        "section 3 allows fixed or learned ones; deit's code learns them",
    ),
    Item(
        "pre_norm",
        "model",
        "order in a block",
        "pre-norm, as ViT",
        "section 5.1",
        _DISTILLED,
        "ViT: arXiv 2010.11929, equations 2 and 3",
    ),
    Item(
        "qkv_bias",
        "model",
        "bias of query, key, value",
        "none: Q = X W",
        "section 3",
        "--no-qkv-bias",
        "deit's code and its published weights have one",
    ),
    Item(
        "size",
        "model",
        "size",
        "Ti, S or B, patches of 16 px",
        "table 1",
        f"{_DISTILLED} --patch-size None --embed-dim None --depth None --num-heads None",
        "width 192, 384 or 768 in heads of 64 channels, 12 blocks",
    ),
    Item(
        "resolution",
        "model",
        "resolution",
        "224 px",
        "table 1",
        "--input-size 224",
        "the paper fine-tunes at 384 px",
    ),
    Item(
        "layer_scale",
        "model",
        "LayerScale",
        "none, as ViT",
        "section 5.1",
        f"{_DISTILLED} --init-values None",
        "DeiT III has it",
    ),
    Item(
        "initial_weights",
        "model",
        "initial weights",
        "truncated normal",
        "section 6",
        "",
        "its standard deviation, 0.02, is that of deit's code",
    ),
    Item(
        "drop_path",
        "model",
        "stochastic depth (DropPath)",
        "0 to 0.1, linearly",
        "table 9",
        f"--drop-path 0.1 {_DISTILLED} --trainable all",
        "the rate of the last block; that it rises linearly is of deit's code",
    ),
    Item("dropout", "model", "dropout", "none", "table 9"),
    Item(
        "heads_at_inference",
        "model",
        "heads at inference",
        "(cls + dist) / 2",
        "section 4",
        _DISTILLED,
        "of the logits in deit's code; the paper adds the softmax outputs",
    ),
    Item(
        "distillation",
        "loss",
        "distillation",
        "hard labels",
        "equation 3",
        "--distillation-type hard",
    ),
    Item(
        "loss_weights",
        "loss",
        "weights of the losses",
        "0.5 and 0.5",
        "equation 3",
        "--distillation-type hard --distillation-alpha 0.5",
    ),
    Item(
        "label_loss",
        "loss",
        "loss of the labels",
        "cross-entropy",
        "equation 3",
        "--no-bce-loss --no-cosub",
    ),
    Item("smoothing", "loss", "label smoothing", "0.1", "table 9", "--smoothing 0.1"),
    Item(
        "teacher",
        "loss",
        "teacher",
        "a ConvNet",
        "table 2",
        "--distillation-type hard --teacher-model regnety_160",
        "RegNetY-16GF is the paper's default",
    ),
    Item(
        "repeated_augmentation",
        "samples",
        "repeated augmentation",
        "3 copies of an image",
        "section 6",
        "--repeated-aug --aug-repeats 3",
        "deit's code has none on one GPU",
    ),
    Item(
        "crop_and_flip",
        "samples",
        "crop and flip",
        "RandomResizedCrop 0.08 to 1, flip 0.5",
        "deit's code",
        "--no-src --scale 0.08 1 --ratio 0.75 1.3333333333333333 --hflip 0.5",
        "datasets.py; the paper does not say",
    ),
    Item(
        "rand_augment",
        "samples",
        "RandAugment",
        "9/0.5",
        "table 9",
        "--aa rand-m9-mstd0.5-inc1",
        "in deit's code 2 operations of magnitude 9 with the standard deviation 0.5",
    ),
    Item(
        "erasing",
        "samples",
        "RandomErasing",
        "probability 0.25",
        "table 9",
        "--reprob 0.25 --remode pixel",
        "the fill is noise in deit's code",
    ),
    Item(
        "mixup",
        "samples",
        "Mixup",
        "0.8",
        "table 9",
        "--mixup 0.8 --mixup-prob 1 --mixup-switch-prob 0.5",
        "in deit's code the parameter of the Beta distribution; every sample is mixed",
    ),
    Item(
        "cutmix",
        "samples",
        "CutMix",
        "1.0",
        "table 9",
        "--cutmix 1 --cutmix-minmax None --mixup-prob 1 --mixup-switch-prob 0.5",
        "in deit's code the parameter of the Beta distribution; half the mixing is CutMix",
    ),
    Item(
        "optimizer",
        "optimizer",
        "optimizer",
        "AdamW, weight decay 0.05",
        "table 9",
        "--opt adamw --weight-decay 0.05 --opt-betas 0.9 0.999 --opt-eps 1e-8",
        "deit's code decays the distillation token, too",
    ),
    Item(
        "learning_rate",
        "optimizer",
        "learning rate",
        "0.0005 x batch / 512",
        "table 9",
        "--lr 5e-4 --no-unscale-lr --layer-decay None",
    ),
    Item(
        "schedule",
        "optimizer",
        "learning rate decay",
        "cosine",
        "table 9",
        "--min-lr 1e-5",
        "deit's code: to 1e-5, a rate for each epoch, an epoch late",
    ),
    Item("warmup", "optimizer", "warm-up", "5 epochs", "table 9", "--warmup-epochs 5"),
    Item("epochs", "optimizer", "epochs", "300", "table 9", "--epochs 300"),
    Item("batch_size", "optimizer", "batch size", "1024", "table 9", "--batch-size 1024"),
    Item(
        "clip_grad",
        "optimizer",
        "gradient clipping",
        "none",
        "table 9",
        "--opt adamw --clip-grad None",
    ),
)
"""The items of the checklist, in the order in which they are shown."""
