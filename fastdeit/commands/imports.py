"""Quick imports: a pause of Python's garbage collector while a command loads its libraries."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def pause_collection() -> Iterator[None]:
    """Pause the garbage collector, which visits all objects repeatedly while their number grows:
    that takes a quarter of the start of `fastdeit train`.

    At the end, the objects that exist, mostly modules and functions, are excluded from later
    collections (`gc.freeze`), which would visit them during training.
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
