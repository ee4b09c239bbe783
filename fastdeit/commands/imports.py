"""Quick imports: what Python's garbage collector costs while a command loads its libraries."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def pause_collection() -> Iterator[None]:
    """Pause the garbage collector, which walks through all objects again and again while their
    number grows: a quarter of the start of `fastdeit train`.

    At the end what exists by then, mostly modules and functions, stays exempt (`gc.freeze`),
    so that no later collection walks through it in the middle of training.
    """
    if not gc.isenabled():  # nested, or switched off by the caller
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
