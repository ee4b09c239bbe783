"""Readable names of a model's classes: ImageNet's codes with what they mean."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from timm.data import ImageNetInfo, infer_imagenet_subset


class ClassName(NamedTuple):
    """A class: the name that its weights have for it, and what an ImageNet code (n01440764)
    means, else ""."""

    name: str
    meaning: str = ""


def known_classes(model: Sequence[str] | None, count: int) -> tuple[str, ...] | None:
    """Return the names of a model's classes: those that its weights have, else those of the
    ImageNet subset of so many classes that timm knows, else None."""
    if model is not None:
        return tuple(model)
    subset = infer_imagenet_subset({"num_classes": count})
    return tuple(ImageNetInfo(subset).label_names()) if subset else None


def name_classes(classes: Sequence[str] | None, count: int) -> list[ClassName]:
    """Return the names of `count` classes, in the order of the outputs.

    classes: those that the weights name; None: those of `known_classes`, else the numbers. Raises
    ValueError for another number of them.
    """
    classes = known_classes(classes, count) or tuple(map(str, range(count)))
    if len(classes) != count:
        raise ValueError(f"the weights name {len(classes)} classes, but have {count} outputs")
    if not any(re.fullmatch(r"n\d{8}", name) for name in classes):
        return [ClassName(name) for name in classes]
    info = ImageNetInfo()
    return [ClassName(name, _find_meaning(info, name)) for name in classes]


def _find_meaning(info: ImageNetInfo, name: str) -> str:
    try:
        return str(info.label_name_to_description(name))
    except KeyError:
        return ""
