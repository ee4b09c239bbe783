"""The output of a model that stands for each class of a data set.

Classes are matched by name if the weights name theirs; a model of 1,000 outputs without names is
taken for one of ImageNet-1k, and likewise for the other numbers that timm knows. Nothing is guessed
beyond that: for classes that do not match, an error names what to give.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from timm.data import ImageNetInfo

from fastdeit.config.parse import require
from fastdeit.data.formats.labels import whole_number
from fastdeit.display.text import shorten
from fastdeit.inference.class_names import known_classes
from fastdeit.storage.atomic import read_bounded
from fastdeit.storage.json_values import MAX_BYTES, parse_json, read_json_file

_SHOWN = 3  # names in an error
_PUBLISHED = {"imagenet_a": "ImageNet-A", "imagenet_r": "ImageNet-R"}
_WAYS = "position, number, imagenet, or a .txt or .json file with the class of each output"


@dataclass(frozen=True)
class ClassMap:
    """The outputs of a model that are scored, and the classes of a data set among them."""

    names: tuple[str, ...]
    """The names of the scored outputs."""
    outputs: tuple[int, ...] | None
    """The scored outputs of the model; None: all."""
    labels: tuple[int, ...]
    """The place of each class of the data set among the scored outputs."""
    description: str
    """The way in which the classes were matched, in words."""


def match_classes(
    data: Sequence[str],
    model: Sequence[str] | None,
    count: int,
    *,
    class_map: str = "",
    valid_labels: str = "auto",
) -> ClassMap:
    """Match the classes of a data set with the outputs of a model.

    model: the names that its weights have, or None; count: the number of its outputs. class_map: ""
    (by name), "position", "number" (a class called 7 is output 7), "imagenet" (the codes of
    ImageNet-1k), or a file: .txt as timm's, a line for each output, or .json, an object from class
    to output. valid_labels: the outputs that are scored: "all", "data" (those of the data set's
    classes), "auto" (data for the classes of ImageNet-A and -R, else all), or a file as timm's,
    with a number in each line; a position or a file of classes then counts only these outputs.
    Raises ValueError for classes that do not match.
    """
    valid = _read_valid_labels(valid_labels, count)
    outputs, how = _find_outputs(data, model, valid or range(count), count, class_map)
    published = _find_published(data)
    if valid_labels == "data" or (valid_labels == "auto" and published):
        valid = sorted(set(outputs))
    place = {output: number for number, output in enumerate(valid or range(count))}
    absent = [name for name, output in zip(data, outputs, strict=True) if output not in place]
    require(not absent, "valid_labels", valid_labels, f"a list with the class {_show(absent)}")
    names = _name_outputs(data, model, count, outputs)
    if valid:
        how = f"{how}, {len(valid)} of {count} outputs {published}".rstrip()
    return ClassMap(
        names=tuple(names[output] for output in valid or range(count)),
        outputs=tuple(valid) if valid else None,
        labels=tuple(place[output] for output in outputs),
        description=how,
    )


def list_names(
    model: Sequence[str] | None, count: int, *, class_map: str = "", valid_labels: str = "auto"
) -> tuple[str, ...]:
    """Return the names of classes that labels count in a data set that defines none itself: those
    of the class map, else of the model, else the numbers of its outputs.

    Raises ValueError as `match_classes`, whose arguments these are.
    """
    valid = _read_valid_labels(valid_labels, count)
    if class_map not in ("", "position", "number"):
        return tuple(_read_class_map(class_map, len(valid or range(count))))
    return known_classes(model, count) or tuple(map(str, range(count)))


def _find_outputs(
    data: Sequence[str],
    model: Sequence[str] | None,
    space: Sequence[int],
    count: int,
    class_map: str,
) -> tuple[list[int], str]:
    """Return the output of each class of the data set, and how it was found, in words; space: the
    outputs that a position or a file counts."""
    if class_map == "":
        return _find_by_name(data, model, count)
    if class_map == "number":
        return _find_by_number(data, count), "by number"
    if class_map == "position":
        require(len(data) == len(space), "class_map", class_map, _describe_counts(data, len(space)))
        return list(space), "by position"
    known = _read_class_map(class_map, len(space))
    return [space[place] for place in _look_up(data, known, class_map)], f"by {class_map}"


def _find_by_name(
    data: Sequence[str], model: Sequence[str] | None, count: int
) -> tuple[list[int], str]:
    known = known_classes(model, count)
    if known is not None and set(data) <= set(known):
        place = {name: number for number, name in enumerate(known)}
        return [place[name] for name in data], "by name"
    numbers = [whole_number(name) for name in data]
    are_numbers = None not in numbers
    if known is not None and are_numbers and known == _imagenet():
        return _find_by_number(data, count), "by number"
    allowed = f"given ({_WAYS})"
    if model is not None:
        absent = [name for name in data if name not in set(model)]
        of = f"the weights name {len(model)} classes, but not {_show(absent)} of the data set"
        require(False, "class_map", "", f"{allowed}: {of}")
    counts = _describe_counts(data, count)
    require(len(data) == count, "class_map", "", f"{allowed}: {counts}")
    order = [number for number in numbers if number is not None]
    clear = not are_numbers or order == sorted(order)
    mixed = f"{allowed}: the data set's classes are numbers, in the order of text"
    require(clear, "class_map", "", mixed)
    return list(range(count)), "by position, as the weights name no classes"


def _find_by_number(data: Sequence[str], count: int) -> list[int]:
    numbers = [whole_number(name) for name in data]
    wrong = [
        name
        for name, number in zip(data, numbers, strict=True)
        if number is None or not 0 <= number < count
    ]
    allowed = f"another way: {_show(wrong)} is no number below {count}, the outputs"
    require(not wrong, "class_map", "number", allowed)
    return [number for number in numbers if number is not None]


def _look_up(data: Sequence[str], known: Mapping[str, int], class_map: str) -> list[int]:
    absent = [name for name in data if name not in known]
    allowed = f"a map with the data set's class {_show(absent)}"
    require(not absent, "class_map", class_map, allowed)
    return [known[name] for name in data]


def _read_class_map(class_map: str, count: int) -> Mapping[str, int]:
    """Return the place of each class: ImageNet's, or those in a file. Raises ValueError for what is
    no class map."""
    if class_map == "imagenet":
        return {name: place for place, name in enumerate(_imagenet())}
    file = Path(class_map)
    require(file.suffix in (".txt", ".json") and file.is_file(), "class_map", class_map, _WAYS)
    if file.suffix == ".json":
        return _check_numbers(file, read_json_file(file), count)
    lines = [line.strip() for line in read_bounded(file, MAX_BYTES).rstrip().splitlines()]
    if not len(lines) == len(set(lines)) == count:
        rule = f"must have one class for each of the {count} outputs (got {len(lines)} lines)"
        raise ValueError(f"{file}: {rule}")
    return {name: number for number, name in enumerate(lines)}


def _check_numbers(file: Path, content: object, count: int) -> dict[str, int]:
    values = content.values() if isinstance(content, dict) else [None]
    if not all(type(value) is int and 0 <= value < count for value in values):
        raise ValueError(f"{file}: must be an object from a class to its output, below {count}")
    assert isinstance(content, dict)
    return content


def _read_valid_labels(valid_labels: str, count: int) -> list[int] | None:
    """Return the outputs in a file of them; None for what is no file."""
    if valid_labels in ("auto", "all", "data"):
        return None
    file = Path(valid_labels)
    allowed = "auto, all, data, or a file with the number of an output in each line"
    require(file.is_file(), "valid_labels", valid_labels, allowed)
    numbers = [whole_number(line) for line in read_bounded(file, MAX_BYTES).split()]
    found = [number for number in numbers if number is not None and 0 <= number < count]
    if not found or len(set(found)) != len(numbers):
        raise ValueError(f"{file}: must have different numbers below {count}, one in each line")
    return found


def _find_published(data: Sequence[str]) -> str:
    """Return the name of the published subset of ImageNet that has just these classes, or ""."""
    for file, title in _PUBLISHED.items():
        if set(data) == set(_read_info(f"{file}_synsets.txt")):
            return title
    return ""


def _imagenet() -> tuple[str, ...]:
    return tuple(ImageNetInfo().label_names())


def _read_info(name: str) -> list[str]:
    """Return the lines of a list that timm ships."""
    return (resources.files("timm.data") / "_info" / name).read_text().split()


def _name_outputs(
    data: Sequence[str], model: Sequence[str] | None, count: int, outputs: Sequence[int]
) -> list[str]:
    """Return the name of each output: the weights' own, else the data set's, else ImageNet's, else
    its number."""
    if model is not None:
        return list(model)
    known = known_classes(None, count)
    names = list(known or map(str, range(count)))
    for name, output in zip(data, outputs, strict=True):
        if known is None or whole_number(name) is None:
            names[output] = name
    return names


def _describe_counts(data: Sequence[str], count: int) -> str:
    return f"the data set has {len(data)} classes, the model scores {count} outputs"


def _show(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(f"'{shorten(name, 40)}'" for name in names[:_SHOWN]) + more


def read_real_labels(source: str, names: Sequence[str]) -> list[list[int]]:
    """Return the classes that ReaL has for each image, by the number in its name
    (ILSVRC2012_val_00000001).

    source: "timm", the list that timm ships, or a file in its form. Raises ValueError for an image
    of another name. Source: Beyer et al. 2020 (2006.07159).
    """
    is_known = source == "timm" or Path(source).is_file()
    require(is_known, "real_labels", source, "timm, or a file as its imagenet_real_labels.json")
    shipped = resources.files("timm.data") / "_info" / "imagenet_real_labels.json"
    is_shipped = source == "timm"
    sets = parse_json(shipped.read_text(), source) if is_shipped else read_json_file(Path(source))
    if not isinstance(sets, list) or not all(map(_is_label_set, sets)):
        raise ValueError(f"{source}: must be a list with a list of classes for each image")
    return [sets[_find_number(name, len(sets)) - 1] for name in names]


def _is_label_set(value: object) -> bool:
    return isinstance(value, list) and all(type(label) is int for label in value)


def _find_number(name: str, most: int) -> int:
    match = re.search(r"ILSVRC2012_val_(\d{8})(?!\d)", name)
    number = int(match[1]) if match else 0
    allowed = f"for images called ILSVRC2012_val_00000001 to ..._{most:08}"
    require(1 <= number <= most, "real_labels", shorten(name, 60), allowed)
    return number
