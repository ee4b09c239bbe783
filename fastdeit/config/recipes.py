"""Recipes: named starting points for a run, each a function that returns a `Config`; and the
settings of a run that comes before or after another.

A docstring has the command, the accuracy to expect with its source, and the hardware. Flags and
`--config` change any field of a recipe; `deit` is the default.
"""

import dataclasses
import math
from collections.abc import Callable

from fastdeit.config.schema import Config

_GRID = 7  # patches along a side, at least, for a patch size that we choose
PATCH_SIZE = 16
"""Of every named student."""


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


_ALL = (deit, deit_paper, digits_teacher, digits, fashion_mnist_teacher, fashion_mnist)
RECIPES: dict[str, Callable[[], Config]] = {recipe.__name__: recipe for recipe in _ALL}


def find_recipe(name: str) -> Config:
    """Return a recipe's settings; `-` in its name stands for `_`. Raise ValueError if there is
    none."""
    recipe = RECIPES.get(name.replace("-", "_"))
    if recipe is None:
        raise ValueError(f"--recipe must be one of {', '.join(RECIPES)} (got {name!r})")
    return recipe()


def follow_with_student(config: Config, recipe: str, folder: str) -> tuple[Config, str]:
    """Return the settings of a student of the teacher that a run gave, and their recipe.

    The images are those of the run, and so is a batch size that the user has chosen. folder: of the
    run.
    """
    student = recipe.replace("-", "_").removesuffix("_teacher")
    base = dataclasses.replace(find_recipe(student), data=config.data, augment=config.augment)
    output_dir = f"runs/{student}"
    if folder == output_dir:
        output_dir = f"{folder}_student"
    return base.replace(
        distill={"teacher_model": config.model.model, "teacher_path": folder},
        model={"patch_size": _fit_patch(base)},
        optim=_keep_batch(config, recipe),
        run={"output_dir": output_dir},
    ), student


def _keep_batch(config: Config, recipe: str) -> dict[str, int]:
    """Return the batch sizes that the user has chosen, by field."""
    usual = find_recipe(recipe).optim
    if config.optim.batch_size == usual.batch_size:
        return {}
    return {"batch_size": config.optim.batch_size, "micro_batch": config.optim.micro_batch}


def _fit_patch(config: Config) -> int | None:
    """Return the student's patch size, or if it does not divide the input sizes, the largest one
    that does and leaves 7 x 7 patches or more."""
    data = config.data
    side = math.gcd(data.input_size, data.eval_input_size)
    if side % (config.model.patch_size or PATCH_SIZE) == 0:
        return config.model.patch_size
    most = min(PATCH_SIZE, max(1, data.input_size // _GRID))
    return max(size for size in range(1, most + 1) if side % size == 0)


def follow_without_teacher(config: Config, recipe: str, folder: str) -> Config:
    """Return the settings of the run in `folder` without its teacher, for a comparison."""
    distill = dataclasses.replace(
        find_recipe(recipe).distill,
        distillation_type="none",
        cache_period=config.distill.cache_period,
        bce_loss=config.distill.bce_loss,
    )
    return dataclasses.replace(config, distill=distill).replace(
        run={"output_dir": f"{folder}_alone", "stop_after_steps": 0},
        checkpoint={"resume": ""},
    )


def precede_with_teacher(config: Config, recipe: str, folder: str) -> Config:
    """Return the settings of the recipe that trains the teacher of a run, in `folder`, on its
    images."""
    base = dataclasses.replace(find_recipe(recipe), data=config.data, augment=config.augment)
    return base.replace(run={"output_dir": folder})
