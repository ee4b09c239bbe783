"""fastdeit: a high-throughput, exactly replayable training pipeline for Data-efficient image
Transformers.

`import fastdeit` is light: a name is imported when it is first used. docs/library.md shows the
parts, docs/api.md lists them.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from fastdeit.library.eval_loader import create_eval_loader as create_eval_loader
    from fastdeit.library.train_loader import create_loader as create_loader
    from fastdeit.library.training import train_run as train_run

_PLACES = {
    "create_eval_loader": "library.eval_loader",
    "create_loader": "library.train_loader",
    "train_run": "library.training",
}
"""Public name -> the module of this package that defines it."""


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'fastdeit' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"fastdeit.{_PLACES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES})
