"""Names of flags, values that a flag has as text, and the error for a value that is refused."""

import csv
import math
import re
from collections.abc import Sequence
from typing import Any

from fastdeit.storage.urls import has_secret, hide_credentials

ARCHIVES = ("torchscript", "export")
"""The kinds of --teacher-model whose file is a recorded program."""

MAX_TEACHER_SIZE = 2048
"""The largest image side in pixels that a teacher may have."""


def is_callable(teacher: str) -> bool:
    """Return True if a --teacher-model is a `module:callable`."""
    return ":" in teacher and not teacher.startswith("hf-hub:")


def runs_code(teacher: str) -> bool:
    """Return True if a --teacher-model, or one of several, is a program."""
    names = split_values("teacher_model", teacher)
    return any(name in ARCHIVES or is_callable(name) for name in names)


def split_values(flag: str, text: str) -> list[str]:
    """Return the values of a flag that takes several, separated by commas; at least one.

    A value with a comma is in double quotes, and a quote in it is doubled, as in a line of CSV.
    Raises SettingError for a quote without an end.
    """
    try:
        return next(csv.reader([text], strict=True, skipinitialspace=True), []) or [""]
    except csv.Error:
        require(False, flag, text, 'values separated by commas, such as a,"b, with a comma"')
        raise


def pair_teachers(models: str, paths: str) -> list[tuple[str, str]]:
    """Return the name and the path of each teacher of --teacher-model and --teacher-path. The path
    of a single teacher is not split; without paths, each is "".

    Raises SettingError if the numbers of teachers and paths differ.
    """
    names = split_values("teacher_model", models)
    if len(names) == 1:
        return [(models, paths)]
    each = split_values("teacher_path", paths) if paths else [""] * len(names)
    allowed = f"{len(names)} paths separated by commas, one for each --teacher-model"
    require(len(each) == len(names), "teacher_path", paths, allowed)
    return list(zip(names, each, strict=True))


def join_values(values: Sequence[str]) -> str:
    """Return values as one text, which `split_values` reads."""
    quoted = ['"' + value.replace('"', '""') + '"' for value in values]
    pairs = zip(values, quoted, strict=True)
    return ",".join(quote if set(value) & set(',"') else value for value, quote in pairs)


class SettingError(ValueError):
    """The error of a value that is not allowed. Attributes: name, value, allowed.

    Its text names the flag, as on the command line: "--batch-size must be 2 or more (got 1)"; the
    functions of `import fastdeit` name the argument instead (library/errors.py).
    """

    def __init__(self, text: str, name: str = "", value: object = None, allowed: str = "") -> None:
        super().__init__(text)
        self.name = name
        self.value = value
        self.allowed = allowed


def require(ok: bool, name: str, value: object, allowed: str) -> None:
    """Raise SettingError, with the flag of `name`, what is allowed, and the value, unless `ok`."""
    _require(ok, name, name_flag(name), value, allowed)


def require_value(ok: bool, name: str, value: object, allowed: str) -> None:
    """Raise SettingError, with `name`, what is allowed, and the value, unless `ok`; for a value
    that has no flag."""
    _require(ok, name, name, value, allowed)


def _require(ok: bool, name: str, label: str, value: object, allowed: str) -> None:
    if not ok:
        shown = " ".join(map(str, value)) if isinstance(value, tuple) else repr(value)
        raise SettingError(f"{label} must be {allowed} (got {shown})", name, value, allowed)


def refuse_credentials(name: str, url: str) -> None:
    """Raise SettingError for a URL with a user, a password or a query, as a setting is printed and
    stored; the message does not have them."""
    shown = hide_credentials(url)
    allowed = "without user, password and query in a URL; fastdeit fetch takes them"
    require(url == shown, name, f"{shown} with them", allowed)


def refuse_secret(name: str, source: str) -> None:
    """Raise SettingError for weights at a URL with a password, a signature or a token, as a setting
    is printed and stored; the message does not have it."""
    allowed = "without a password or a token in a URL; download that file, and name it"
    require(not has_secret(source), name, f"{hide_credentials(source)} with one", allowed)


def name_flag(field: str) -> str:
    """Return the flag of a field of the settings."""
    return f"--{field.replace('_', '-')}"


class Section:
    """A section of the settings; a `Config` checks its sections."""

    def check(self) -> None:
        """Raise ValueError for a value that is not allowed."""

    def check_finite(self) -> None:
        """Raise ValueError for a number that is infinite or NaN."""
        for name, value in vars(self).items():
            numbers = value if isinstance(value, tuple) else (value,)
            finite = all(math.isfinite(one) for one in numbers if isinstance(one, float))
            self._require(name, finite, "finite")

    def _require(self, name: str, ok: bool, allowed: str) -> None:
        require(ok, name, getattr(self, name), allowed)

    def _require_each(self, names: Sequence[str], least: float) -> None:
        for name in names:
            self._require(name, getattr(self, name) >= least, f"{least} or more")

    def _require_probabilities(self, *names: str) -> None:
        for name in names:
            self._require(name, 0 <= getattr(self, name) <= 1, "a probability, from 0 to 1")

    def _require_span(self, name: str, most: float = math.inf) -> None:
        low, high = getattr(self, name)
        limit = "" if most == math.inf else f" and at most {most:g}"
        ok = 0 < low <= high <= most
        self._require(name, ok, f"two numbers above 0{limit}, the smaller one first")

    def _require_pairs(self, name: str) -> None:
        value = getattr(self, name)
        ok = value >= 2 and value % 2 == 0
        self._require(name, ok, "an even number of at least 2")


def parse_rand_augment(aa: str) -> dict[str, Any]:
    """Return the `ra_*` fields of `PlanSpec` for a RandAugment string of timm.

    Source: timm, data/auto_augment.py, rand_augment_transform. Raises ValueError for another
    string.
    """
    allowed = "none, 3a, or as rand-m9-mstd0.5-inc1 (sections m, n, mstd, mmax, p, and inc1)"
    name, *sections = aa.split("-")
    require(name == "rand" and "inc1" in sections, "aa", aa, allowed)
    spec: dict[str, Any] = {"ra_magnitude": 10.0, "ra_std": 0.0}
    fields = {
        "m": "ra_magnitude",
        "n": "ra_layers",
        "mstd": "ra_std",
        "mmax": "ra_max",
        "p": "ra_prob",
    }
    for section in sections:
        match = re.fullmatch(r"(mstd|mmax|m|n|p|inc)(\d+(?:\.\d+)?|inf)", section)
        require(match is not None and section not in ("inc0", "ninf"), "aa", aa, allowed)
        assert match is not None
        if match[1] != "inc":
            spec[fields[match[1]]] = int(match[2]) if match[1] == "n" else float(match[2])
    if spec["ra_std"] > 100:  # timm reads a huge deviation as a uniform draw
        spec["ra_std"] = math.inf
    return spec


def parse_time_limit(text: str) -> float | None:
    """Return the seconds of a time in the forms of sbatch's --time, or None for an empty text.

    Raises ValueError for any other form.
    """
    if not text:
        return None
    match = re.fullmatch(r"(?:(\d+)-)?(\d+(?::\d+){0,2})", text)
    require(match is not None, "time_limit", text, "minutes, M:SS, H:MM:SS, D-H, D-H:MM, D-H:MM:SS")
    assert match is not None
    clock = [int(part) for part in match[2].split(":")]
    if match[1] is None and len(clock) < 3:
        clock = [0, *clock]  # begins with minutes
    hours, minutes, seconds = (*clock, 0, 0)[:3]
    return float(((int(match[1] or 0) * 24 + hours) * 60 + minutes) * 60 + seconds)
