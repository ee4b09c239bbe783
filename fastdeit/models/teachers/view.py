"""The images that a teacher takes: its own mean, std and input size, from whatever names them.

Names and forms of the values are timm's: mean and std are three numbers for pixels from 0 to 1,
input_size is a side in pixels or [3, side, side]. Everything is read as data; no code runs.
"""

import numbers
import reprlib
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fastdeit.config.parse import MAX_TEACHER_SIZE, name_flag
from fastdeit.models.hub import find_config
from fastdeit.storage.json_values import MAX_BYTES, parse_json, read_json_file

FIELDS = ("mean", "std", "input_size")
"""The fields of a view, by timm's names."""
STUDENT = "the student"
"""The name of the source that is used where no other names a field."""
_EXTRA_FOLDERS = ("extra", "extra_files")


class Preprocessing(NamedTuple):
    """Input of a network: images normalised by mean and std, size pixels a side."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: int


class Source(NamedTuple):
    """Something that may name fields of a view: where it is, and its values by timm's names."""

    where: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class View:
    """A teacher's preprocessing, and the source of each field."""

    preprocessing: Preprocessing
    origins: dict[str, str]

    @property
    def assumed(self) -> list[str]:
        """Return the fields that only the student names."""
        return [field for field, where in self.origins.items() if where == STUDENT]

    def describe(self, student_size: int) -> str:
        """Return one line: the values, where they come from, and which of them are assumed."""
        mean, std, size = self.preprocessing
        resized = f" (resized from {student_size})" if size != student_size else ""
        values = f"mean {_join(mean)}, std {_join(std)}, {size} px{resized}"
        fields: dict[str, list[str]] = {}
        for field, where in self.origins.items():
            fields.setdefault(where, []).append(field)
        origins = sorted(fields, key=lambda where: where == STUDENT)
        parts = [f"{_join_names(fields[where])} from {where}" for where in origins]
        line = f"{values}; {', '.join(parts)}"
        if not self.assumed:
            return line
        flags = " ".join(name_flag(f"teacher_{field}") for field in self.assumed)
        return f"{line}: assumed, as nothing names the teacher's own ({flags})"


def _join_names(names: Sequence[str]) -> str:
    """Return names as text: "a", "a and b", "a, b and c"."""
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last


def _join(values: Sequence[float]) -> str:
    return " ".join(f"{value:g}" for value in values)


Choose = Callable[[Sequence[Source]], View]
"""A function that returns the view which sources name; the first source with a field counts."""


def choose_view(sources: Sequence[Source]) -> View:
    """Return the view, with each field from the first source that names it; the last source names
    all.

    Raises ValueError, naming the source, for a value that no network can have.
    """
    values: dict[str, Any] = {}
    origins = {}
    for field in FIELDS:
        source = next(each for each in sources if each.values.get(field) is not None)
        values[field] = _check(field, source.values[field], source.where)
        origins[field] = source.where
    return View(Preprocessing(values["mean"], values["std"], values["input_size"]), origins)


def _check(field: str, value: Any, where: str) -> Any:
    """Return a field as `Preprocessing` holds it."""
    # NumPy's arrays and torch's tensors
    value = value.tolist() if hasattr(value, "tolist") else value
    if field == "input_size":
        return _check_size(value, where)
    return _check_colour(field, value, where)


def _check_size(value: Any, where: str) -> int:
    is_shape = isinstance(value, list | tuple) and len(value) == 3 and value[1] == value[2]
    size = value[2] if is_shape else value
    ok = type(size) is int and 1 <= size <= MAX_TEACHER_SIZE
    _require(ok, where, "input_size", value, f"1 to {MAX_TEACHER_SIZE} pixels, or [3, side, side]")
    return int(size)


def _check_colour(field: str, value: Any, where: str) -> tuple[float, ...]:
    ok = isinstance(value, list | tuple) and len(value) == 3
    ok = ok and all(isinstance(x, numbers.Real) and type(x) is not bool for x in value)
    least = "above 0" if field == "std" else "0"
    ok = ok and all(0 <= x <= 1 and (x > 0 or field == "mean") for x in value)
    _require(ok, where, field, value, f"three numbers from {least} to 1")
    return tuple(float(x) for x in value)


def _require(ok: bool, where: str, field: str, value: object, allowed: str) -> None:
    if not ok:
        raise ValueError(
            f"{where}: the teacher's {field} must be {allowed} (got {reprlib.repr(value)})"
        )


def read_metadata(metadata: Mapping[str, str], path: Path) -> Source:
    """Return what the safetensors metadata of our own trainer names.

    Raises ValueError for a field that is no JSON.
    """
    values = {}
    for field in FIELDS:
        if field in metadata:
            values[field] = parse_json(metadata[field], f"{path}: the teacher's {field}")
    return Source(str(path), values)


def read_settings_beside(path: Path) -> Source:
    """Return what the JSON file beside a teacher's file names: `teacher.json` for `teacher.pt`, or
    the config.json that describes weights of ours, of timm or of the Hub.

    Raises ValueError for a file that is not JSON or too long, and OSError.
    """
    for beside in (path.with_suffix(".json"), find_config(path)):
        if beside is not None and beside.is_file() and beside != path:
            return Source(str(beside), _find_fields(read_json_file(beside)))
    return Source("", {})


def read_extra_files(path: Path) -> Source:
    """Return what the extra files (JSON, `NAME.json`) in a TorchScript or exported archive name.

    Raises ValueError for one that is not JSON or too long.
    """
    for where, content in read_extra_json(path):
        if values := _find_fields(content):
            return Source(where, values)
    return Source("", {})


def read_extra_json(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the place and the content of each JSON file among the extra files of an archive.

    Raises ValueError for one that is not JSON or too long.
    """
    with zipfile.ZipFile(path) as archive:
        for entry in sorted(archive.namelist()):
            folder, _, name = entry.partition("/")[2].partition("/")
            if folder in _EXTRA_FOLDERS and name.endswith(".json"):
                where = f"{path}: {name}"
                yield where, parse_json(_extract(archive, entry, where), where)


def _extract(archive: zipfile.ZipFile, entry: str, where: str) -> bytes:
    try:
        with archive.open(entry) as file:
            data = file.read(MAX_BYTES + 1)
    except (zipfile.BadZipFile, zlib.error, RuntimeError) as error:
        # RuntimeError: encrypted, or compressed in an unknown way
        raise ValueError(f"{where}: cannot be read: {error}") from None
    if len(data) > MAX_BYTES:
        raise ValueError(f"{where} must be at most {MAX_BYTES:,} bytes")
    return data


def _find_fields(content: Any) -> dict[str, Any]:
    """Return the fields in timm's config.json, or in a flat object."""
    content = content if isinstance(content, dict) else {}
    inner = content.get("pretrained_cfg")
    values = inner if isinstance(inner, dict) else content
    return {field: values[field] for field in FIELDS if field in values}


def read_pretrained_cfg(owners: Sequence[tuple[str, object]]) -> Source:
    """Return what the first `pretrained_cfg` or `default_cfg` among objects names; owners: the
    objects, each with its name."""
    for where, owner in owners:
        for attribute in ("pretrained_cfg", "default_cfg"):
            config = getattr(owner, attribute, None)
            if config is not None:
                is_mapping = isinstance(config, Mapping)
                values = config if is_mapping else getattr(config, "__dict__", {})
                return Source(f"{where}.{attribute}", values)
    return Source("", {})
