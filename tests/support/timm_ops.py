"""The operations of an augmentation as timm, torchvision and PIL do them, with arguments and
pictures to try them on."""

import numpy as np
from PIL import Image, ImageFilter
from timm.data.auto_augment import LEVEL_TO_ARG, NAME_TO_OP
from torchvision.transforms import functional

from fastdeit.plan.operations import RAND_AUGMENT_OPS, op_arguments

FILL = (124, 116, 104)
WHOLE = ("PosterizeIncreasing", "SolarizeIncreasing", "SolarizeAdd")


def picture(seed: int, height: int, width: int) -> np.ndarray:
    """uint8 (height, width, 3): noise, something smooth, few levels, or a single one, by turns."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 256, (height, width, 3), np.uint8)
    if seed % 4 == 1:
        return np.asarray(
            Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8)).resize((width, height), 3)
        )
    if seed % 4 == 2:
        return 97 + noise // 64
    return np.full_like(noise, noise[0, 0, 0]) if seed % 8 == 3 else noise


def timm_op(image: np.ndarray, name: str, arg: float) -> np.ndarray:
    pil = Image.fromarray(image)
    if name == "Grayscale":
        return np.asarray(functional.to_grayscale(pil, 3))
    if name == "GaussianBlur":
        return np.asarray(pil.filter(ImageFilter.GaussianBlur(radius=arg)))
    arguments = [] if LEVEL_TO_ARG[name] is None else [int(arg) if name in WHOLE else float(arg)]
    return np.asarray(
        NAME_TO_OP[name](pil, *arguments, fillcolor=FILL, resample=Image.Resampling.BICUBIC)
    )


def arguments_of(op: int, count: int) -> np.ndarray:
    """Over the whole range of magnitudes, both ends and both signs included; blur radii 0.1 to 2,
    and some far beyond."""
    magnitude = np.random.default_rng(op).uniform(0, 10, count)
    magnitude[:4] = 0, 0, 10, 10
    if op >= len(RAND_AUGMENT_OPS):
        return np.where(np.arange(count) % 8 == 7, 4 * magnitude, 0.1 + 0.19 * magnitude)
    return op_arguments(np.full(count, op), magnitude, np.arange(count) % 2 == 1)
