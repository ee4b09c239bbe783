"""Names of a model's classes, for people: ImageNet's codes with what they mean."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from timm.data import ImageNetInfo, infer_imagenet_subset


class ClassName(NamedTuple):
    """A class: the name that its weights have for it, and what an ImageNet code (n01440764)
    means, else ""."""

    name: str
    meaning: str = ""


def name_classes(classes: Sequence[str] | None, count: int) -> list[ClassName]:
    """Return the names of `count` classes, in the order of the outputs.

    classes: those that the weights name. Without, 1,000 classes are those of ImageNet-1k, and so
    for the other numbers that timm knows, as 21,843; else a class has its number as its name.
    Raises ValueError for another number of them.
    """
    if classes is None:
        subset = infer_imagenet_subset({"num_classes": count})
        classes = ImageNetInfo(subset).label_names() if subset else list(map(str, range(count)))
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
