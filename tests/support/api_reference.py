"""docs/api.md, made of the docstrings: `python -m tests.support.api_reference` writes it."""

import ast
import dataclasses
import inspect
import itertools
import re
import textwrap
from collections.abc import Iterator
from typing import Any

import fastdeit
from fastdeit.config.schema import Config
from fastdeit.library.settings import LoaderSettings
from tests.support.launching import ROOT

DOCUMENT = ROOT / "docs" / "api.md"
_HEAD = """# The names of `import fastdeit`

[library.md](library.md) shows them at work. This page is made of the docstrings, by
`python -m tests.support.api_reference`.
"""


def write_reference() -> str:
    """Return the text of docs/api.md."""
    parts = [_HEAD]
    for name in fastdeit._PLACES:
        value = getattr(fastdeit, name)
        if name == "RECIPES":
            parts.append(f"## {name}\n\n{_list_recipes(value)}")
        else:
            parts.append(f"## {name}\n\n{_describe(name, value)}")
    parts.append(f"## LoaderSettings\n\n{_list_settings()}")
    return "\n".join(parts)


def _describe(name: str, value: Any) -> str:
    lines = [_show_signature(name, value), _clean(value), ""]
    if inspect.isclass(value):
        lines += [f"- **`{field}`**: {' '.join(doc.split())}" for field, doc in _list_fields(value)]
        for method, function in _list_methods(value):
            doc = _clean(function)
            call = "" if isinstance(function, property) else str(_signature(function))
            lines += [f"- **`{method}{call}`**: {' '.join(doc.split())}"]
        lines += [""] if lines[-1] else []
    return "\n".join(lines)


def _show_signature(name: str, value: Any) -> str:
    is_made_by_a_function = "made by `" in _clean(value)
    if inspect.isclass(value) and (issubclass(value, Exception) or is_made_by_a_function):
        return ""
    parameters = [f"    {part},\n" for part in _signature(value).parameters.values()]
    listed = f"\n{''.join(parameters)}" if parameters else ""
    return f"```text\n{name}({listed})\n```\n"


def _list_fields(value: type) -> Iterator[tuple[str, str]]:
    """Return the fields of a class that have a string below them, which inspect does not see."""
    (defined,) = ast.parse(textwrap.dedent(inspect.getsource(value))).body
    assert isinstance(defined, ast.ClassDef)
    for field, below in itertools.pairwise(defined.body):
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr):
            assert isinstance(field.target, ast.Name)
            yield field.target.id, ast.literal_eval(below.value)


def _signature(function: Any) -> inspect.Signature:
    """Return a signature without `self`, its types as they are written."""
    found = inspect.signature(function)
    parameters = [
        part.replace(annotation=_Written(part.annotation))
        if part.annotation is not part.empty
        else part
        for part in found.parameters.values()
        if part.name != "self"
    ]
    return found.replace(parameters=parameters, return_annotation=found.empty)


class _Written:
    """A type, shown without the names of modules."""

    def __init__(self, kind: Any) -> None:
        text = (
            kind.__name__ if isinstance(kind, type) and not hasattr(kind, "__args__") else str(kind)
        )
        self._text = re.sub(r"\b(?:[a-z_0-9]+\.)+(?=[A-Za-z])", "", text)

    def __repr__(self) -> str:
        return self._text


def _list_methods(value: type) -> Iterator[tuple[str, Any]]:
    for name, member in vars(value).items():
        is_shown = not name.startswith("_") and inspect.getdoc(member)
        if is_shown and (inspect.isfunction(member) or isinstance(member, property)):
            yield name, member


def _clean(value: Any) -> str:
    return inspect.cleandoc(value.__doc__ or "")


def _list_recipes(recipes: Any) -> str:
    rows = [f"- `{name}`: {_clean(recipe).splitlines()[0]}" for name, recipe in recipes.items()]
    return (
        "Named starting points for a run: functions that return a `Config`.\n\n"
        + "\n".join(rows)
        + "\n"
    )


def _list_settings() -> str:
    rows = ["| argument | default |", "|---|---|"]
    for section in dataclasses.fields(Config):
        for item in dataclasses.fields(getattr(Config(), section.name)):
            if item.name in LoaderSettings.__annotations__:
                rows.append(f"| `{item.name}` | `{item.default!r}` |")
    return (
        f"{_clean(LoaderSettings)} `fastdeit train --help` explains them.\n\n"
        + "\n".join(rows)
        + "\n"
    )


if __name__ == "__main__":
    DOCUMENT.write_text(write_reference(), encoding="utf-8")
