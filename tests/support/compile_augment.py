"""`python -m tests.support.compile_augment` compiles the exact augmentation and stores it in
numba's cache.

Without it, each process of the first tests on a new checkout compiles the same code by itself, for
half a minute.
"""

import numpy as np

from fastdeit.data.augment import exact
from fastdeit.data.augment.jit import SOURCE_HASH


def compile_augment() -> None:
    """Compile the two functions that DALI calls, and the operations that tests call."""
    exact._run_entry(SOURCE_HASH)
    exact._setup_entry(SOURCE_HASH)
    exact.apply_op(np.zeros((2, 2, 3), np.uint8), 0, 0.0, (0, 0, 0))


if __name__ == "__main__":
    compile_augment()
