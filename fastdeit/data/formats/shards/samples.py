"""Members of a tar file joined to samples: an image, and the label of its key.

WebDataset's key of a member is its path up to the first dot of the last name. Here the key of a
member is all before its last extension, and an image whose key has no label takes the label of the
longest shorter key: `scan_v1.0_07.jpg` is labelled by `scan_v1.0_07.cls`, `07.input.jpg` by
`07.cls`.
"""

import os
import tarfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from fastdeit.data.formats.file_names import extension_fault, is_image, is_litter
from fastdeit.data.formats.labels import Label, read_label, whole_number
from fastdeit.display.text import printable
from fastdeit.storage.json_values import load_json

MAX_LABEL_BYTES = 2**20
"""The largest size of a member with a label."""

_LABEL_EXTENSIONS = (".cls", ".json")  # the first is preferred: a .json may hold anything
# keys of a .json member with a class; a number is preferred, under the first three
_NUMBERS = ("label", "cls", "class_id")
_NAMES = ("class_name", "class", "cls_name")


@dataclass
class Scan:
    """The samples of one shard."""

    names: list[str] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    labels: list[Label | None] = field(default_factory=list)
    faults: dict[int, str] = field(default_factory=dict)
    others: Counter[str] = field(default_factory=Counter)
    """The number of members that are neither images nor labels, by extension."""
    lone_labels: list[str] = field(default_factory=list)
    """The keys of labels without an image."""

    def add(
        self,
        name: str,
        offset: int = 0,
        length: int = 0,
        label: Label | None = None,
        fault: str = "",
    ) -> None:
        if fault:
            self.faults[len(self.names)] = fault
        self.names.append(name)
        self.offsets.append(offset)
        self.lengths.append(length)
        self.labels.append(label)


class Samples:
    """The samples of one shard, collected member by member."""

    def __init__(self, shard_bytes: int) -> None:
        self._size = shard_bytes
        self._images: list[tarfile.TarInfo] = []
        self._labels: dict[str, dict[str, Label]] = {}  # by key, then by extension
        self._unclear: set[str] = set()  # keys with two labels
        self._faults: dict[str, str] = {}
        self._others: Counter[str] = Counter()

    def take(self, member: tarfile.TarInfo, tar: tarfile.TarFile) -> None:
        """Add a member; read a label, but not an image."""
        if is_litter(member.name):
            return
        extension = os.path.splitext(member.name)[1].lower()
        unread = "" if member.isdir() else extension_fault(member.name)
        fault = self._fault(member) or unread
        if fault:
            self._faults[member.name] = fault
        elif member.isdir():
            return
        elif is_image(member.name):
            self._images.append(member)
        elif extension in _LABEL_EXTENSIONS:
            self._take_label(member, extension, tar)
        else:
            self._others[extension or "no extension"] += 1

    def _fault(self, member: tarfile.TarInfo) -> str:
        path = PurePosixPath(member.name)
        if path.is_absolute() or ".." in path.parts:
            return "leads out of the archive"
        if member.isdir():
            return ""
        if not member.isreg() or member.issparse():
            return "is a link, a device or a sparse file, no regular member"
        missing = member.offset_data + member.size - self._size
        return f"is cut: the shard ends {missing} bytes before it does" if missing > 0 else ""

    def _take_label(self, member: tarfile.TarInfo, extension: str, tar: tarfile.TarFile) -> None:
        try:
            label = _read_label(member, extension, tar)
        except (ValueError, OSError) as error:
            self._faults[member.name] = f"is no label: {error}"
            return
        if label is None:
            return
        key = _key(member.name)
        first = self._labels.setdefault(key, {}).setdefault(extension, label)
        if first != label:
            self._unclear.add(key)
            self._faults[member.name] = f"is there twice, with the labels {first!r} and {label!r}"

    def close(self, scan: Scan, end_fault: str) -> None:
        """Add everything to `scan`: a sample for each key, in order, then members with faults."""
        images_by_key = self._images_by_key()
        used = {*images_by_key, *(self._labelled_key(_key(name)) for name in self._faults)}
        scan.lone_labels += [key for key in self._labels if key not in used]
        scan.others += self._others
        for key, images in images_by_key.items():
            # KEY.jpg comes before KEY.mask.png
            first, *others = sorted(images, key=lambda member: len(_key(member.name)))
            labels = self._labels.get(key, {})
            label = next((labels[name] for name in _LABEL_EXTENSIONS if name in labels), None)
            shown = printable(os.path.basename(key))
            fault = "" if labels else f"has no label: no {shown}.cls, no {shown}.json that has one"
            if key in self._unclear:
                fault = "has two labels: its name is there twice"
            scan.add(first.name, first.offset_data, first.size, label, fault)
            second = f"is the second image of its sample, the first is {printable(first.name)}"
            self._faults |= {member.name: second for member in others}
        for name, fault in self._faults.items():
            scan.add(name, fault=fault)
        if end_fault:
            scan.add("", fault=end_fault)

    def _images_by_key(self) -> dict[str, list[tarfile.TarInfo]]:
        images: dict[str, list[tarfile.TarInfo]] = {}
        for member in self._images:
            images.setdefault(self._labelled_key(_key(member.name)), []).append(member)
        return images

    def _labelled_key(self, key: str) -> str:
        """Return the key, or the longest start of it up to a dot of its last name, that has a
        label; the key if there is none."""
        start = key
        while start not in self._labels:
            dot = start.rfind(".")
            if dot <= start.rfind("/") + 1:
                return key
            start = start[:dot]
        return start


def _key(name: str) -> str:
    return os.path.splitext(name)[0]


def _read_label(member: tarfile.TarInfo, extension: str, tar: tarfile.TarFile) -> Label | None:
    """Return the label of a `.cls` or `.json` member, or None if a `.json` has none. Raises
    ValueError for what cannot be a label."""
    if member.size > MAX_LABEL_BYTES:
        raise ValueError(f"{member.size} bytes are more than {MAX_LABEL_BYTES}")
    opened = tar.extractfile(member)
    assert opened is not None
    text = opened.read().decode("utf-8-sig").strip()
    if extension == ".json":
        return _label_in(load_json(text))
    if not text or len(text.splitlines()) > 1:
        raise ValueError(f"must be one line with a whole number or a name (got {text[:40]!r})")
    return read_label(text)


def _label_in(values: object) -> Label | None:
    """Return the label in the content of a `.json` member, or None. Raises ValueError for a key of
    labels whose value is not a label."""
    if not isinstance(values, dict):
        return None if isinstance(values, list) else read_label(values)
    found = {name: values[name] for name in (*_NUMBERS, *_NAMES) if values.get(name) is not None}
    labels: dict[str, Label] = {}
    fault = ""
    for name, value in found.items():
        try:
            label = read_label(value)
        except ValueError as error:
            fault = fault or f"{name}: {error}"
        else:
            if label is not None:
                labels[name] = label
    if not labels and fault:
        raise ValueError(fault)
    candidates = [labels[name] for name in _NUMBERS if name in labels]
    numbers = [label for label in candidates if whole_number(label) is not None]
    return next(iter([*numbers, *labels.values()]), None)
