"""fastdeit: a high-throughput, exactly replayable training pipeline for Data-efficient image
Transformers.

`import fastdeit` is light: a name is imported when it is first used. docs/library.md shows the
parts, docs/api.md lists them.
"""

import importlib
import os
import pwd
from typing import TYPE_CHECKING, Any

from fastdeit.storage.urls import find_user_cache

__version__ = "0.1.0"

if TYPE_CHECKING:
    from fastdeit.config.parse import SettingError as SettingError
    from fastdeit.data.loaders.batch import Batch as Batch
    from fastdeit.kernels.mix import mix as mix
    from fastdeit.library.augmentation import augment_crops as augment_crops
    from fastdeit.library.augmentation import augment_images as augment_images
    from fastdeit.library.config import RECIPES as RECIPES
    from fastdeit.library.config import Config as Config
    from fastdeit.library.eval_loader import create_eval_loader as create_eval_loader
    from fastdeit.library.loader import Loader as Loader
    from fastdeit.library.models import analyse_checkpoint as analyse_checkpoint
    from fastdeit.library.models import audit_model as audit_model
    from fastdeit.library.models import create_student as create_student
    from fastdeit.library.models import create_teacher as create_teacher
    from fastdeit.library.models import evaluate_checkpoint as evaluate_checkpoint
    from fastdeit.library.models import export_model as export_model
    from fastdeit.library.models import load as load
    from fastdeit.library.train_loader import create_loader as create_loader
    from fastdeit.library.training import compare_runs as compare_runs
    from fastdeit.library.training import estimate_memory as estimate_memory
    from fastdeit.library.training import estimate_run as estimate_run
    from fastdeit.library.training import train_run as train_run
    from fastdeit.library.training import write_report as write_report
    from fastdeit.models.hub import EvalView as EvalView
    from fastdeit.models.student import Student as Student
    from fastdeit.plan.plan import Plan as Plan
    from fastdeit.plan.plan import SampleParams as SampleParams
    from fastdeit.plan.spec import PlanSpec as PlanSpec
    from fastdeit.teacher_cache.reader import Cache as TeacherCache  # noqa: F401
    from fastdeit.tracking.callbacks import Callback as Callback
    from fastdeit.training.losses import DistillationLoss as DistillationLoss

_PLACES = {
    "Batch": "data.loaders.batch",
    "Callback": "tracking.callbacks",
    "Config": "library.config",
    "DistillationLoss": "training.losses",
    "EvalView": "models.hub",
    "Loader": "library.loader",
    "Plan": "plan.plan",
    "PlanSpec": "plan.spec",
    "RECIPES": "library.config",
    "SampleParams": "plan.plan",
    "SettingError": "config.parse",
    "Student": "models.student",
    "TeacherCache": "teacher_cache.reader:Cache",
    "analyse_checkpoint": "library.models",
    "audit_model": "library.models",
    "augment_crops": "library.augmentation",
    "augment_images": "library.augmentation",
    "compare_runs": "library.training",
    "create_eval_loader": "library.eval_loader",
    "create_loader": "library.train_loader",
    "create_student": "library.models",
    "create_teacher": "library.models",
    "estimate_memory": "library.training",
    "estimate_run": "library.training",
    "evaluate_checkpoint": "library.models",
    "export_model": "library.models",
    "load": "library.models",
    "mix": "kernels.mix",
    "train_run": "library.training",
    "write_report": "library.training",
}
"""Public name -> the module of this package that defines it, and its name there if it differs."""


def _name_user() -> None:
    """Give a process whose user id has no account, as in a container, a name and a home folder:
    torch asks for the name when it is imported."""
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        os.environ.setdefault("USER", f"uid-{os.getuid()}")
        os.environ.setdefault("HOME", "/")  # as docker does; not to be written to


def _place_compiled_code() -> None:
    """Have the code of torch.compile in the user's cache, if that can be written.

    torch chooses when it is imported: a name in /tmp that every user can guess, and make first; and
    what lies there is run.
    """
    place = find_user_cache() / "fastdeit" / "torchinductor"
    above = next(folder for folder in place.parents if folder.exists())
    if os.access(above, os.W_OK):
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(place))


_name_user()
_place_compiled_code()


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'fastdeit' has no attribute {name!r}")
    module, _, original = _PLACES[name].partition(":")
    value = getattr(importlib.import_module(f"fastdeit.{module}"), original or name)
    # found at once from now on
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES})
