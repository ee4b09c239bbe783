"""Recipes that start from trained weights, named with --finetune; the model is that of the
weights. docs/finetuning.md explains them."""

from fastdeit.config.recipes.small import digits
from fastdeit.config.schema import Config


def finetune_384() -> Config:
    """DeiT at 384 px from weights at 224 px, with the teacher: the weights are adapted to the finer
    grid of patches in a tenth of the epochs.

    deepspeed fastdeit/train.py --recipe finetune_384 --data-path IMAGENET \\
        --finetune runs/deit --teacher-path regnety_160.safetensors

    The learning rate is 5e-6 for a batch of 512, constant after the warm-up, weight decay 1e-8, 30
    epochs, as in deit's README_deit.md, whose code refuses a teacher here. The evaluation takes the
    whole image, as timm does at 384 px. Published: DeiT-B 83.1 % top-1 without the teacher, 84.5 %
    distilled (arXiv 2012.12877, table 5; at 224 px 81.8 and 83.4 %). The paper's teacher works at
    384 px, too: --teacher-input-size 384. Not yet run at full length by us; `digits_48` has figures
    of a small form.
    """
    return Config().replace(
        data={"input_size": 384, "eval_crop_ratio": 1.0},
        model={"model": ""},
        optim={
            "epochs": 30,
            "batch_size": 512,
            "lr": 5e-6,
            "min_lr": 5e-6,
            "warmup_lr": 0.0,
            "weight_decay": 1e-8,
        },
    )


def transfer() -> Config:
    """Another data set, with new heads for its classes.

    deepspeed fastdeit/train.py --recipe transfer --data-path DATA --finetune runs/deit

    The settings that deit's authors name for iNaturalist (facebookresearch/deit, issue 105): AdamW,
    a learning rate of 7.5e-5 for their batch of 768, weight decay 0.05, 360 epochs, erasing 0.1;
    here the rate falls to 0 and not to 1e-5, so that any batch size works. Fewer epochs give
    slightly worse results, they say. For CIFAR-10 and Cars they used SGD (issue 45), which is not
    offered. There is no teacher unless --distillation-type and --teacher-path name one that knows
    the classes. Published, DeiT-B distilled at 384 px: iNaturalist 2018 80.1 %, 2019 83.0 %,
    Flowers 98.9 %, Cars 93.9 % (arXiv 2012.12877, table 7). Not yet run at full length by us.

    From the digits 0 to 4 to the digits 5 to 9 in 110 steps, three seeds: 74.0, 83.6 and 88.1 % of
    177 held-out images; with --trainable heads 78.5, 80.2 and 78.0 %; from scratch 54.2, 45.8 and
    48.0 % (docs/finetuning.md).
    """
    return Config().replace(
        augment={"reprob": 0.1},
        model={"model": ""},
        distill={"distillation_type": "none"},
        optim={
            "epochs": 360,
            "batch_size": 768,
            "lr": 5e-5,
            "min_lr": 0.0,
            "warmup_lr": 0.0,
        },
    )


def digits_48() -> Config:
    """The recipe `digits` fine-tuned from 32 to 48 px, with its teacher, which sees 32 px.

    deepspeed fastdeit/train.py --recipe digits_teacher
    deepspeed fastdeit/train.py --recipe digits
    deepspeed fastdeit/train.py --recipe digits_48

    Three seeds, 270 steps: 96.1, 97.2 and 96.3 % of 355 held-out digits, from weights of 36 epochs
    that had 95.5 % at 32 px. From scratch at 48 px, with the rate of `digits`, the same steps give
    27.3, 30.7 and 30.1 %. Under two minutes on one CPU core.
    """
    return digits().replace(
        data={"input_size": 48},
        model=dict.fromkeys(("patch_size", "embed_dim", "depth", "num_heads"))
        | {"model": "", "finetune": "runs/digits"},
        optim={"epochs": 6, "lr": 2e-4, "warmup_epochs": 1, "model_ema_decay": 0.95},
    )
