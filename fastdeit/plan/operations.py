"""The table of augmentation operations: one row for each, which every other room reads.

A row has the distribution of the argument, how the argument is shown, and, by name, the functions
of both backends (fastdeit/data/augment/) that carry the operation out. CONTRIBUTING.md says how to
add one. Names and arguments are those of timm 1.0.31 (data/auto_augment.py).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

Argument = Callable[[np.ndarray], np.ndarray]
"""A function from levels in [-1, 1], RandAugment's magnitude / 10 with its sign, to arguments;
float64 arrays of one shape."""


@dataclass(frozen=True)
class Operation:
    """A row of the table."""

    name: str
    kind: Literal["levels", "statistics", "image"]
    """The inputs of a new level: the old level; that and statistics of the whole image; or its
    neighbours and channels. Operations of the first two kinds are tables of 256 levels."""
    exact: str
    """Function of data/augment/ops.py or warp.py, which numba compiles; `kind` decides its
    signature."""
    native: str
    """Function of data/augment/native_ops.py, which adds DALI operators to a graph."""
    operand: str = "nothing"
    """Function of data/augment/native_operands.py that makes the operand of `native` from the
    argument."""
    argument: Argument | None = field(default=None, repr=False)
    """The function that computes RandAugment's argument; None: the operation has no argument, or
    RandAugment does not draw it."""
    unit: str = ""
    """Format that shows the argument to a user."""
    signed: bool = False
    """Whether RandAugment negates the level, for half of the samples."""
    span: tuple[float, float] | None = None
    """Range of an argument that is drawn uniformly, outside RandAugment."""


def _degrees(level: np.ndarray) -> np.ndarray:
    return 30.0 * level


def _bits(level: np.ndarray) -> np.ndarray:
    return 4 - np.trunc(level * 4)


def _threshold(level: np.ndarray) -> np.ndarray:
    return 256 - np.minimum(256, np.trunc(level * 256))


def _addend(level: np.ndarray) -> np.ndarray:
    return np.minimum(128, np.trunc(level * 110))


def _factor(level: np.ndarray) -> np.ndarray:
    return np.maximum(0.1, 1.0 + 0.9 * level)


def _slope(level: np.ndarray) -> np.ndarray:
    return 0.3 * level


def _share(level: np.ndarray) -> np.ndarray:
    return 0.45 * level


def _enhance(name: str, kind: Literal["levels", "statistics", "image"], function: str) -> Operation:
    return Operation(name, kind, function, function, "factor", _factor, "x {:.2f}", signed=True)


def _warp(name: str, function: str, argument: Argument, unit: str = "{:+.2f}") -> Operation:
    return Operation(name, "image", function, "warp", function, argument, unit, signed=True)


_RAND_AUGMENT = (
    Operation("AutoContrast", "statistics", "auto_contrast", "auto_contrast"),
    Operation("Equalize", "statistics", "equalize", "equalize"),
    Operation("Invert", "levels", "invert", "solarize"),  # solarised from level 0 on
    _warp("Rotate", "rotate", _degrees, "{:+.1f} degrees"),
    Operation(
        "PosterizeIncreasing", "levels", "posterize", "posterize", "mask", _bits, "{:.0f} bits"
    ),
    Operation(
        "SolarizeIncreasing", "levels", "solarize", "solarize", "whole", _threshold, "from {:.0f}"
    ),
    Operation("SolarizeAdd", "levels", "solarize_add", "solarize_add", "whole", _addend, "+{:.0f}"),
    _enhance("ColorIncreasing", "image", "color"),
    _enhance("ContrastIncreasing", "statistics", "contrast"),
    _enhance("BrightnessIncreasing", "levels", "brightness"),
    _enhance("SharpnessIncreasing", "image", "sharpness"),
    _warp("ShearX", "shear_x", _slope),
    _warp("ShearY", "shear_y", _slope),
    _warp("TranslateXRel", "translate_x", _share),
    _warp("TranslateYRel", "translate_y", _share),
)
_OTHERS = (
    Operation("Grayscale", "image", "grayscale", "grayscale"),
    Operation(
        "GaussianBlur", "image", "blur", "blur", "taps", unit="radius {:.2f}", span=(0.1, 2.0)
    ),
)

OPERATIONS = _RAND_AUGMENT + _OTHERS
"""Every operation. Its place is its number in `SampleParams.ops`, so a new one comes last."""

OPS = tuple(operation.name for operation in OPERATIONS)
"""The names of all operations, by number."""

RAND_AUGMENT_OPS = tuple(operation.name for operation in _RAND_AUGMENT)
"""The 15 operations of timm's `inc1` set, in its order; the first of `OPS`."""

THREE_OPS = ("Grayscale", "SolarizeIncreasing", "GaussianBlur")
"""The operations that 3-Augment chooses from, in the order of its draws."""

JITTER_OPS = ("BrightnessIncreasing", "ContrastIncreasing", "ColorIncreasing")
"""The operations of the colour jitter, in the order of its draws."""


def mean_colour(mean: Sequence[float]) -> tuple[int, ...]:
    """Return the colour that fills the area outside a warped image, as in timm: the mean of the
    normalisation (each channel in 0 to 1) as levels, 0 to 255."""
    return tuple(min(255, round(255 * value)) for value in mean)


def op_arguments(ops: np.ndarray, magnitude: np.ndarray, negate: np.ndarray) -> np.ndarray:
    """Return timm's argument of RandAugment's operations, float64; all arrays of one shape.

    ops: numbers of operations; magnitude: 0 to 10; negate: bool, whether a signed operation
    gets the negative level. Source: timm's `_*_level_to_arg` functions of the increasing set.
    """
    level = magnitude / 10.0
    signed_level = np.where(negate, -level, level)
    choices = []
    for operation in _RAND_AUGMENT:
        argument = operation.argument or np.zeros_like
        choices.append(argument(signed_level if operation.signed else level))
    return np.choose(ops, choices)
