"""The operands of the native backend's operations: a row of floats, made from the plan's argument.

Each public function except `pack_operands` is found by its name in fastdeit/plan/operations.py. It
takes float64 arguments (n,) and the height and width of the images, and returns float64 (n, k), k
at most FLOAT_COLUMNS.
"""

import numpy as np

from fastdeit.plan.operations import OPERATIONS

FLOAT_COLUMNS = 9
"""The number of floats of a layer: those of a warp's matrix."""
BOX_TAPS = 5
"""The taps of one box of PIL's Gaussian blur: enough up to radius 2.4."""
BOX_PASSES = 3
"""The boxes along each axis, one after the other, of PIL's Gaussian blur."""


def pack_operands(ops: np.ndarray, args: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return float64 (..., FLOAT_COLUMNS): the operands of operations, zeros after them.

    ops: int (...), numbers of operations, -1 for none; args: float64 (...), timm's arguments.
    """
    rows = np.zeros((*ops.shape, FLOAT_COLUMNS))
    for number in np.unique(ops[ops >= 0]).tolist():
        make_operands = globals()[OPERATIONS[number].operand]
        chosen = ops == number
        made = make_operands(args[chosen], height, width)
        rows[chosen, : made.shape[1]] = made
    return rows


def nothing(args: np.ndarray, height: int, width: int) -> np.ndarray:
    return np.zeros((len(args), 0))


def whole(args: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return a threshold or an addend as a whole number."""
    return np.trunc(args)[:, None]


def mask(args: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return the mask that keeps so many of the highest bits."""
    dropped = np.clip(8 - args.astype(np.int64), 0, 8)
    return (256.0 - (1 << dropped))[:, None]


def factor(args: np.ndarray, height: int, width: int) -> np.ndarray:
    return args[:, None]


def taps(radius: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return the weights of the box, 5 taps, that PIL's GaussianBlur(radius) applies three times;
    radius at most 2.4.

    The box's radius, which is not a whole number, is chosen so that three boxes have the standard
    deviation `radius` (Gwosdek et al., SSVM 2011); the fraction is the weight of the two outermost
    pixels.
    """
    variance = radius**2 / BOX_PASSES
    inner = np.floor((np.sqrt(12 * variance + 1) - 1) / 2)
    above = (2 * inner + 1) * (inner * (inner + 1) - 3 * variance)
    box_radius = inner + above / (6 * (variance - (inner + 1) ** 2))
    distance = np.abs(np.arange(BOX_TAPS) - BOX_TAPS // 2)
    weights = np.clip(box_radius[:, None] - distance + 1, 0, 1)
    return weights / (2 * box_radius + 1)[:, None]


def rotate(degrees: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return matrices of rotations about the centre, rounded as in PIL's Image.rotate."""
    angle = -np.deg2rad(degrees % 360.0)
    cos, sin = np.round(np.cos(angle), 15), np.round(np.sin(angle), 15)
    x, y = width / 2, height / 2
    matrices = _identities(len(degrees))
    matrices[:, 0] = np.stack((cos, sin, x - cos * x - sin * y), 1)
    matrices[:, 1] = np.stack((-sin, cos, y + sin * x - cos * y), 1)
    return matrices.reshape(-1, 9)


def shear_x(slope: np.ndarray, height: int, width: int) -> np.ndarray:
    return _identity_but(0, 1, slope)


def shear_y(slope: np.ndarray, height: int, width: int) -> np.ndarray:
    return _identity_but(1, 0, slope)


def translate_x(share: np.ndarray, height: int, width: int) -> np.ndarray:
    return _identity_but(0, 2, share * width)


def translate_y(share: np.ndarray, height: int, width: int) -> np.ndarray:
    return _identity_but(1, 2, share * height)


def _identities(count: int) -> np.ndarray:
    """Return float64 (count, 3, 3): identity matrices. A matrix maps output to input pixels, in
    coordinates of their corners, as PIL's AFFINE data does."""
    return np.broadcast_to(np.eye(3), (count, 3, 3)).copy()


def _identity_but(row: int, column: int, values: np.ndarray) -> np.ndarray:
    matrices = _identities(len(values))
    matrices[:, row, column] = values
    return matrices.reshape(-1, 9)
