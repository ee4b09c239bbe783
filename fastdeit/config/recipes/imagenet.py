"""Recipes for ImageNet."""

from fastdeit.config.schema import Config


def deit() -> Config:
    """DeiT-S with a distillation token, 300 epochs of ImageNet-1k against RegNetY-16GF.

    deepspeed fastdeit/train.py --recipe deit --data-path IMAGENET \\
        --teacher-path regnety_160.safetensors

    Published: 81.2 % top-1 (arXiv 2012.12877, table 5; Ti 74.5 %, B 83.4 %), in under 3 days on 4
    V100. Differs from the paper in 2 copies per image and no QKV bias. Not yet run at full length
    by us.
    """
    return Config()


def deit_paper() -> Config:
    """DeiT-S distilled as deit's repository trains it: 3 copies per image, QKV bias, draws shared
    by 256 images, a learning rate for each epoch that is one epoch late, weight decay on
    `dist_token`; for fine-tuning and soft distillation deit's resize and normalisation.

    deepspeed fastdeit/train.py --recipe deit_paper --data-path IMAGENET \\
        --teacher-path regnety_160.safetensors

    Published: 81.2 % top-1 (arXiv 2012.12877, table 5). Not yet run at full length by us. What
    still differs from deit is a list in docs/coming-from-deit.md.
    """
    return Config().replace(
        augment={"aug_repeats": 3},
        model={"qkv_bias": True, "pos_embed_antialias": False},
        mix={"mixup_group": 256},
        distill={"distillation_tau": 1.0, "distillation_legacy": True},
        optim={"sched_on_updates": False, "sched_lag": 1, "dist_token_decay": True},
    )
