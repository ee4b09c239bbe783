"""The operations of an augmentation by timm, torchvision and PIL, with arguments and images."""

import numpy as np
from PIL import Image, ImageFilter
from timm.data.auto_augment import LEVEL_TO_ARG, NAME_TO_OP
from torchvision.transforms import functional

from fastdeit.plan.operations import OPERATIONS, RAND_AUGMENT_OPS, op_arguments

FILL = (124, 116, 104)
WHOLE = ("PosterizeIncreasing", "SolarizeIncreasing", "SolarizeAdd")


def picture(seed: int, height: int, width: int) -> np.ndarray:
    """Return uint8 (height, width, 3): by seed, noise, a smooth image, few levels, or one level."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 256, (height, width, 3), np.uint8)
    if seed % 4 == 1:
        small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8))
        return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))
    if seed % 4 == 2:
        return 97 + noise // 64
    return np.full_like(noise, noise[0, 0, 0]) if seed % 8 == 3 else noise


def timm_op(image: np.ndarray, name: str, arg: float) -> np.ndarray:
    """Apply the reference of operation `name` to an image."""
    pil = Image.fromarray(image)
    if name == "Grayscale":
        return np.array(functional.to_grayscale(pil, 3))
    if name == "GaussianBlur":
        return np.array(pil.filter(ImageFilter.GaussianBlur(radius=float(arg))))
    if name == "PosterizeIncreasing" and int(arg) == 0:
        # timm asks for 0 bits: black in Pillow 12, an error in Pillow 13
        return np.zeros_like(image)
    arguments = [] if LEVEL_TO_ARG[name] is None else [int(arg) if name in WHOLE else float(arg)]
    options = {"fillcolor": FILL, "resample": Image.Resampling.BICUBIC}
    return np.array(NAME_TO_OP[name](pil, *arguments, **options))


def arguments_of(op: int, count: int) -> np.ndarray:
    """Return arguments over the whole range of magnitudes, with both ends and both signs; outside
    RandAugment over the operation's span, and a few beyond it."""
    magnitude = np.random.default_rng(op).uniform(0, 10, count)
    magnitude[:4] = 0, 0, 10, 10
    if op >= len(RAND_AUGMENT_OPS):
        low, high = OPERATIONS[op].span or (0.0, 0.0)
        inside = low + (high - low) * magnitude / 10
        return np.where(np.arange(count) % 8 == 7, 2 * high * magnitude, inside)
    return op_arguments(np.full(count, op), magnitude, np.arange(count) % 2 == 1)
