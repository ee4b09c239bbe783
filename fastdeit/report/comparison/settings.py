"""Settings of runs that differ from each other, and from the recipe that each run began with."""

from collections.abc import Sequence
from typing import Any

from fastdeit.config.changes import list_values
from fastdeit.config.parse import name_flag
from fastdeit.config.recipes import RECIPES, find_recipe
from fastdeit.report.comparison.rows import Row, make_row
from fastdeit.report.record import RunRecord

_OWN = {"output_dir"}
"""Settings that differ in any two runs."""
_PLACES = frozenset(("data_path", "output_dir", "teacher_path", "resume", "cache"))
"""Settings that every user sets, which are no difference from a recipe."""
_NONE = "none"
"""The text of the setting None."""


def list_settings(records: Sequence[RunRecord]) -> list[Row]:
    """Return a row for each setting in which two runs differ, by flag."""
    values = [list_values(record.settings) if record.settings else {} for record in records]
    names = dict.fromkeys(name for one in values for name in one if name not in _OWN)
    rows = [make_row(name_flag(name), _pick(values, name), _show) for name in names]
    return [row for row in rows if row.differs]


def _pick(values: Sequence[dict[str, Any]], name: str) -> list[Any]:
    # None, a value of some settings, stands in a row for what is not recorded
    return [_NONE if name in one and one[name] is None else one.get(name) for one in values]


def _show(value: Any) -> str:
    return _NONE if value in (None, _NONE) else repr(value)


def list_recipes(records: Sequence[RunRecord]) -> list[Row]:
    """Return the name of each run's recipe, then a row for each setting in which a run differs from
    its own recipe, such as `2, recipe 300`; a run with the recipe's setting has no value."""
    changes = [list_changes(record) for record in records]
    flags = dict.fromkeys(flag for one in changes for flag in one)
    name = make_row("recipe", [record.recipe or None for record in records])
    return [name, *(make_row(flag, [one.get(flag) for one in changes]) for flag in flags)]


def list_changes(record: RunRecord) -> dict[str, str]:
    """Return how the settings of a run differ from its recipe, in words, by flag; nothing if either
    is not recorded."""
    return {
        name_flag(name): f"{_show(value)}, recipe {_show(start)}"
        for name, (value, start) in (find_changes(record) or {}).items()
    }


def find_changes(record: RunRecord) -> dict[str, tuple[Any, Any]] | None:
    """Return the settings of a run that are not those of its recipe, paths aside, by name: its own
    value, then the recipe's. None if either is not recorded."""
    if record.settings is None or record.recipe.replace("-", "_") not in RECIPES:
        return None
    start = list_values(find_recipe(record.recipe))
    return {
        name: (value, start[name])
        for name, value in list_values(record.settings).items()
        if name not in _PLACES and value != start[name]
    }
