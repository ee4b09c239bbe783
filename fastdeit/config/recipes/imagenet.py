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


def deit3() -> Config:
    """DeiT III: a plain ViT-S with LayerScale, 800 epochs of ImageNet-1k, without a teacher.

    deepspeed fastdeit/train.py --recipe deit3 --data-path IMAGENET

    B and L train at 192 px, H at 160 px, then 20 epochs at 224 px (`deit3_finetune`): --model
    deit3_base_patch16_224 --input-size 192 --lr 3e-3 --drop-path 0.2 (L: 0.45; H, with
    deit3_huge_patch14_224: 0.6; its 160 px become 154, a multiple of 14). As in deit's
    README_revenge.md: LAMB, binary cross-entropy, 3-Augment, 3 copies per image, no erasing;
    evaluated on the whole image (arXiv 2204.07118, table 1). Published there: S 81.4 % top-1, B
    83.8, L 84.9, H 85.2. Not yet run at full length by us.
    """
    return Config().replace(
        data={"eval_crop_ratio": 1.0},
        augment={"aa": "3a", "reprob": 0.0, "aug_repeats": 3},
        model={"model": "deit3_small_patch16_224", "drop_path": 0.05},
        mix={"smoothing": 0.0},
        distill={"distillation_type": "none", "bce_loss": True},
        optim={"epochs": 800, "batch_size": 2048, "opt": "lamb", "lr": 4e-3, "unscale_lr": True},
    )


def deit3_finetune() -> Config:
    """The 20 epochs at 224 px that follow `deit3` at a lower resolution, for DeiT III-B.

    deepspeed fastdeit/train.py --recipe deit3_finetune --data-path IMAGENET \\
        --finetune runs/deit3

    L: --drop-path 0.45, H: --drop-path 0.55; S at 384 px: --input-size 384 --drop-path 0. As in
    deit's README_revenge.md: AdamW, a constant rate after the warm-up, RandAugment, smoothing 0.1.
    Published: B 83.8 % top-1 (arXiv 2204.07118). Not yet run at full length by us.
    """
    return Config().replace(
        data={"eval_crop_ratio": 1.0},
        augment={"reprob": 0.0, "repeated_aug": False},
        model={"model": "", "drop_path": 0.2},
        distill={"distillation_type": "none"},
        optim={
            "epochs": 20,
            "batch_size": 512,
            "lr": 1e-5,
            "unscale_lr": True,
            "weight_decay": 0.1,
        },
    )
