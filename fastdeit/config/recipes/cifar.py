"""Recipes for CIFAR-10 and CIFAR-100, whose published files are read as they are (docs/data.md)."""

from fastdeit.config.schema import Config

_CIFAR = Config().replace(
    data={
        "data_path": "data/cifar10",
        "input_size": 32,
        "mean": (0.4914, 0.4822, 0.4465),
        "std": (0.2470, 0.2435, 0.2616),
        "eval_crop_ratio": 1.0,
    },
    # at 32 px a random crop of 8 % is no object any more; deit pads by 4 pixels, too
    augment={"src": True, "repeated_aug": False},
)


def cifar10_teacher() -> Config:
    """A ResNet of timm for the recipe `cifar10`, on images enlarged to 64 px, as its first layers
    divide the resolution by four.

    deepspeed fastdeit/train.py --recipe cifar10_teacher --data-path FOLDER

    FOLDER: that of cifar-10-batches-py, of an archive, or of CIFAR-100's files. Not yet run at full
    length by us, so there is no accuracy to quote.
    """
    return _CIFAR.replace(
        data={"input_size": 64},
        model={"model": "resnet26d", "drop_path": 0.0},
        augment={"aa": "rand-m5-n2-mstd0.5-inc1", "reprob": 0.1},
        mix={"mixup": 0.2, "cutmix": 1.0, "mixup_prob": 0.5},
        distill={"distillation_type": "none"},
        optim={
            "epochs": 100,
            "batch_size": 256,
            "lr": 2e-3,
            "unscale_lr": True,
            "model_ema_decay": 0.9995,
        },
    )


def cifar10() -> Config:
    """DeiT-Ti with patches of 4 pixels on CIFAR-10 at 32 px, or on CIFAR-100.

    deepspeed fastdeit/train.py --recipe cifar10_teacher --data-path FOLDER
    deepspeed fastdeit/train.py --recipe cifar10 --data-path FOLDER

    The paper's form, DeiT-B at 224 px for 7,200 epochs (97.5 %, distilled 98.5 %: arXiv 2012.12877,
    section 5.4), has these flags too: --model deit_base_distilled_patch16_224 --input-size 224
    --patch-size 16 --no-src --epochs 7200

    Not yet run at full length by us.
    """
    return _CIFAR.replace(
        model={"model": "deit_tiny_distilled_patch16_224", "patch_size": 4},
        distill={"teacher_model": "resnet26d", "teacher_path": "runs/cifar10_teacher"},
        optim={
            "batch_size": 512,
            "lr": 1e-3,
            "unscale_lr": True,
            "warmup_epochs": 10,
            "model_ema_decay": 0.9998,
        },
        run={"eval_epochs": 5},
    )
