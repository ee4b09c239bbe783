"""Recipes for small data sets, which a machine without a GPU can train."""

from fastdeit.config.schema import Config

_DIGITS = Config().replace(
    data={
        "data_set": "digits",
        "data_path": "data/digits",
        "input_size": 32,
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "eval_crop_ratio": 1.0,
    },
    # 1,442 images are few: light augmentation, and every image each epoch
    augment={
        "aa": "rand-m3-n1-mstd0.5-inc1",
        "scale": (0.75, 1.0),
        "ratio": (0.85, 1.18),
        "hflip": 0.0,
        "reprob": 0.0,
        "repeated_aug": False,
    },
)


def digits_teacher() -> Config:
    """A small ConvNet for the recipe `digits`, trained with the same command as everything else.

    deepspeed fastdeit/train.py --recipe digits_teacher

    98 to 99 % of 355 held-out digits after 12 epochs, under a minute on two CPU cores.
    """
    return _DIGITS.replace(
        model={"model": "test_resnet", "drop_path": 0.0},
        mix={"mixup": 0.0, "cutmix": 0.0},
        distill={"distillation_type": "none"},
        optim={
            "epochs": 12,
            "batch_size": 64,
            "lr": 4e-3,
            "warmup_epochs": 1,
            "model_ema_decay": 0.97,
            "unscale_lr": True,
        },
        run={"eval_epochs": 4},
    )


def digits() -> Config:
    """A small distilled DeiT on scikit-learn's handwritten digits, written out as image files.

    deepspeed fastdeit/train.py --recipe digits_teacher
    deepspeed fastdeit/train.py --recipe digits

    93 to 97 % of 355 held-out digits after 36 epochs, two to three minutes on two CPU cores.
    """
    return _DIGITS.replace(
        model={
            "model": "deit_tiny_distilled_patch16_224",
            "patch_size": 4,
            "embed_dim": 96,
            "depth": 4,
            "num_heads": 3,
            "drop_path": 0.05,
        },
        mix={"mixup": 0.2, "mixup_prob": 0.3},
        distill={
            "teacher_model": "test_resnet",
            "teacher_path": "runs/digits_teacher",
        },
        optim={
            "epochs": 36,
            "batch_size": 32,
            "lr": 6e-4,
            "unscale_lr": True,
            "clip_grad": 1.0,
            "warmup_epochs": 6,
            "model_ema_decay": 0.99,
        },
        run={"eval_epochs": 6},
    )


_FASHION = Config().replace(
    data={
        # of Debian's package dataset-fashion-mnist
        "data_path": "/usr/share/datasets/fashion-mnist",
        "input_size": 28,
        "mean": (0.286, 0.286, 0.286),
        "std": (0.353, 0.353, 0.353),
        "eval_crop_ratio": 1.0,
    },
    augment={
        "aa": "none",
        "color_jitter": 0.0,
        "scale": (0.8, 1.0),
        "reprob": 0.0,
        "repeated_aug": False,
    },
    mix={"mixup": 0.0, "cutmix": 0.0},  # twelve epochs are too few for it
)


def fashion_mnist_teacher() -> Config:
    """A small ConvNet for the recipe `fashion_mnist`.

    deepspeed fastdeit/train.py --recipe fashion_mnist_teacher [--data-path FOLDER]

    About 90 % of the 10,000 test images after 4 epochs, a few minutes on two CPU cores.
    """
    return _FASHION.replace(
        model={"model": "test_resnet", "drop_path": 0.0},
        distill={"distillation_type": "none"},
        optim={
            "epochs": 4,
            "batch_size": 128,
            "lr": 4e-3,
            "warmup_epochs": 0.5,
            "model_ema_decay": 0.99,
            "unscale_lr": True,
        },
        run={"eval_epochs": 2, "log_steps": 50},
    )


def fashion_mnist() -> Config:
    """A small distilled DeiT on Fashion-MNIST, read from its IDX files.

    deepspeed fastdeit/train.py --recipe fashion_mnist_teacher
    deepspeed fastdeit/train.py --recipe fashion_mnist

    88.5 % of the 10,000 test images after 12 epochs, 18 minutes on two CPU cores with the teacher
    (90.2 %).
    """
    return _FASHION.replace(
        model={
            "model": "deit_tiny_distilled_patch16_224",
            "patch_size": 7,
            "embed_dim": 128,
            "depth": 4,
            "num_heads": 4,
            "drop_path": 0.05,
        },
        distill={
            "teacher_model": "test_resnet",
            "teacher_path": "runs/fashion_mnist_teacher",
        },
        optim={
            "epochs": 12,
            "batch_size": 64,
            "lr": 1e-3,
            "unscale_lr": True,
            "clip_grad": 1.0,
            "warmup_epochs": 1,
            "model_ema_decay": 0.999,
        },
        run={"eval_epochs": 2, "log_steps": 50},
    )
