"""Names in a packed data set, of its images and its class folders, and the texts of its labels."""

import os
import re
from collections.abc import Sequence

import numpy as np

from fastdeit.config.parse import require
from fastdeit.data.formats.file_names import is_litter
from fastdeit.data.formats.labels import number_labels, whole_number
from fastdeit.data.formats.listing import DataError
from fastdeit.display.text import printable

_NOT_PLAIN = re.compile(r"[^A-Za-z0-9_-]+")
_LONGEST = 60  # letters of a name after the row; a tar header has room for 100


def name_image(row: int, name: str) -> str:
    """Return the name of an image, without an extension: its row, and its name in the source with
    only the letters and digits of ASCII, `-` and `_`. WebDataset ends a key at the first dot."""
    stem = os.path.splitext(os.path.basename(name))[0]
    plain = _NOT_PLAIN.sub("-", stem)[:_LONGEST]
    number = f"{row:08d}_"
    # an image that is packed again has the same name
    return plain if plain.startswith(number) else number + plain


def list_label_texts(classes: Sequence[str]) -> list[str]:
    """Return the text of a `.cls` member for each class: its place, or its name where the number
    would be read as the name of another class.

    Raises DataError for names that a classes.txt cannot hold.
    """
    lines = "\n".join(classes).splitlines()
    odd = [name for name in classes if name != name.strip() or name not in lines]
    if odd or lines != list(classes):
        shown = printable(odd[0] if odd else "")
        raise DataError(f"the class '{shown}' cannot be a line of classes.txt: rename it")
    positions = list(map(str, range(len(classes))))
    for texts in (positions, list(classes)):
        if _are_read_as(texts, classes):
            return texts
    raise DataError("the names of the classes are ambiguous: some are numbers of other classes")


def _are_read_as(texts: Sequence[str], classes: Sequence[str]) -> bool:
    try:
        labels, _ = number_labels(texts, classes, lambda row: texts[row])
    except DataError:
        return False
    return labels.tolist() == list(range(len(classes)))


def list_class_folders(classes: Sequence[str], labels: np.ndarray) -> list[str]:
    """Return the name of each class's folder: that of the class; numbers are padded with zeros so
    that they sort.

    labels: int64 (N,), of the training images. Raises SettingError if class folders would be read
    with other labels.
    """
    names = list(classes)
    if names != sorted(names) and all(whole_number(name) is not None for name in names):
        width = max(map(len, names))
        names = [name.zfill(width) for name in names]
    empty = np.setdiff1d(np.arange(len(names)), labels)
    wrong = next((name for name in names if not _is_folder_name(name)), "")
    reason = ""
    if wrong:
        reason = f"the class '{printable(wrong)}' is no name of a folder"
    elif names != sorted(set(names)):
        reason = "the names of the classes do not sort as their labels"
    elif empty.size:
        reason = f"the class '{printable(names[empty[0]])}' has no training image"
    require(not reason, "format", "folder", f"shards for this data set, as {reason}")
    return names


def _is_folder_name(name: str) -> bool:
    return bool(name) and "/" not in name and not name.startswith(".") and not is_litter(name)
