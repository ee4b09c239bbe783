"""`fastdeit recipes`: the named starting points of a run.

`list` prints each recipe in one line. `show NAME` prints the settings of one, as a file for
--config; with flags of fastdeit train, the settings of a run with these flags. `diff A B` prints
the differences, and the flags that change A to B; each is a recipe, a run folder or a settings
file.

Exit codes: 0; 2 for a recipe or a run that does not exist.
"""

import dataclasses
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.table import Column, Table

from fastdeit.commands.errors import one_line_errors
from fastdeit.commands.output import print_json
from fastdeit.config.changes import read_settings
from fastdeit.config.cli import parse_config
from fastdeit.config.describe import describe_recipe, format_settings
from fastdeit.config.flags import format_flag
from fastdeit.config.options import split_options
from fastdeit.config.parse import name_flag, require_value
from fastdeit.config.recipes import RECIPES, find_recipe
from fastdeit.config.schema import Config
from fastdeit.display.terminal import Terminal
from fastdeit.display.text import quote_words
from fastdeit.plan.build import build_spec
from fastdeit.storage.run_folder import RunFolder

_FORMS = "list, show NAME [FLAGS], or diff NAME NAME|RUN"


@dataclass(frozen=True)
class RecipesOptions:
    """The flags of `fastdeit recipes`."""

    action: Annotated[
        tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="[list|show NAME|diff A B]")
    ] = ()
    """The action; list by default."""
    json: bool = False
    """Print one JSON value in place of text."""


def recipes_command(argv: Sequence[str]) -> int:
    """Run `fastdeit recipes`; return 0. Exit with code 2 for a recipe or a file that does not
    exist."""
    with one_line_errors():
        options, flags = split_options(argv, RecipesOptions, "fastdeit recipes", __doc__ or "")
        match options.action:
            case () | ("list",) if not flags:
                _list(options.json)
            case ("show", name):
                _show(name, flags, options.json)
            case ("diff", first, second) if not flags:
                _diff(first, second, options.json)
            case words:
                require_value(False, "recipes", quote_words(*words, *flags), _FORMS)
    return 0


def _list(as_json: bool) -> None:
    rows = {name: describe_recipe(recipe) for name, recipe in RECIPES.items()}
    if as_json:
        print_json(Terminal(), [{"name": name, "description": text} for name, text in rows.items()])
        return
    table = Table(Column("recipe", no_wrap=True), "content")
    for name, text in rows.items():
        table.add_row(name, text)
    Terminal().show(table)


def _show(name: str, flags: Sequence[str], as_json: bool) -> None:
    config = find_recipe(name)
    recipe = RECIPES[name.replace("-", "_")]
    description = inspect.cleandoc(recipe.__doc__ or "")
    if flags:
        config, _ = parse_config([*flags, "--recipe", name], "fastdeit recipes show")
        description += f"\n\nWith {quote_words(*flags)}"
    plan = build_spec(config).describe()
    if as_json:
        facts = {"name": recipe.__name__, "description": describe_recipe(recipe), "plan": plan}
        print_json(Terminal(), facts | {"settings": config.to_dict()})
        return
    Terminal().say(format_settings(config, description, plan).rstrip())


def _diff(first: str, second: str, as_json: bool) -> None:
    before, after = (_read(name) for name in (first, second))
    rows = _list_differences(before, after)
    plans = [build_spec(config).describe() for config in (before, after)]
    if as_json:
        names = {"from": first, "to": second}
        print_json(Terminal(), names | {"plans": plans, "differences": rows})
        return
    terminal = Terminal()
    if not rows:
        terminal.say(f"{first} and {second} have the same settings")
        return
    table = Table(Column("setting", no_wrap=True), first, second)
    for row in rows:
        table.add_row(name_flag(row["field"]), *(str(row[end]) for end in ("from", "to")))
    terminal.show(table)
    terminal.say(" ".join(row["flag"] for row in rows), label=f"from {first} to {second}:  ")
    if plans[0] != plans[1]:
        for name, plan in zip((first, second), plans, strict=True):
            terminal.say(plan, label=f"plan of {name}:  ")


def _read(name: str) -> Config:
    """Return the settings of a recipe, a run folder or a settings file."""
    if name.replace("-", "_") in RECIPES:
        return find_recipe(name)
    path = Path(name)
    file = RunFolder(path).config if path.is_dir() else path
    allowed = "a recipe (fastdeit recipes lists them), a run folder or a settings file"
    require_value(file.is_file(), "recipes diff", name, allowed)
    return read_settings(file, "recipes diff")


def _list_differences(before: Config, after: Config) -> list[dict[str, Any]]:
    """Return the fields that differ, in the order of `Config`, with the flag that sets the second
    value."""
    rows = []
    for section in dataclasses.fields(Config):
        then, now = (getattr(config, section.name) for config in (before, after))
        for field in dataclasses.fields(then):
            values = [getattr(one, field.name) for one in (then, now)]
            if values[0] != values[1]:
                flag = quote_words(*format_flag(field.name, values[1]))
                place = {"section": section.name, "field": field.name}
                rows.append(place | {"from": values[0], "to": values[1], "flag": flag})
    return rows
