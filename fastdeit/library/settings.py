"""The settings of a loader as keyword arguments: fields of `Config`, by their names there."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from typing_extensions import TypedDict

from fastdeit.config.file import config_from_dict
from fastdeit.config.schema import Config
from fastdeit.display.text import suggest_near


class LoaderSettings(TypedDict, total=False):
    """Keyword arguments of `create_loader` in addition to its own; names, defaults and meaning are
    those of the flags of `fastdeit train`."""

    data_cache: str
    data_set: Literal["any", "digits", "cifar10", "cifar100"]
    bad_images: Literal["skip", "error"]
    index_check: Literal["auto", "headers", "decode"]
    input_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    decoder: Literal["auto", "cpu", "mixed", "hardware"]
    num_workers: int
    prefetch: int
    read_ahead: Literal["auto", "on", "off"]
    aa: str
    augment_backend: Literal["auto", "exact", "native"]
    augment_device: Literal["auto", "cpu", "gpu"]
    color_jitter: float
    src: bool
    scale: tuple[float, float]
    ratio: tuple[float, float]
    hflip: float
    reprob: float
    remode: Literal["const", "rand", "pixel"]
    mixup: float
    cutmix: float
    cutmix_minmax: tuple[float, float] | None
    mixup_prob: float
    mixup_switch_prob: float
    mixup_group: int
    smoothing: float
    seed: int
    cache: str
    cache_miss: Literal["error", "live", "ground-truth"]
    cache_period: int
    distillation_type: Literal["none", "soft", "hard"]
    distillation_tau: float


def configure(fields: Mapping[str, Any], source: str) -> Config:
    """Return the default `Config` with fields replaced, each in its section.

    source: the function that an error names. Raises ValueError for a value that is not allowed.
    """
    values: dict[str, dict[str, Any]] = {}
    for section in dataclasses.fields(Config):
        names = {item.name for item in dataclasses.fields(getattr(Config(), section.name))}
        values[section.name] = {name: fields[name] for name in names & fields.keys()}
    return config_from_dict(Config(), values, source)


def check_names(given: Iterable[str], allowed: Iterable[str], source: str) -> None:
    """Raise TypeError, naming near ones, for a keyword argument that is not allowed, as Python
    does."""
    for name in given:
        if name not in allowed:
            near = suggest_near(name, allowed)
            raise TypeError(f"{source}() has no keyword argument {name!r}{near}")
