"""Settings as text for a reader: a recipe in one line, or all its fields with their meanings."""

import ast
import dataclasses
import functools
import inspect
import textwrap
from collections.abc import Callable, Iterator

import yaml

from fastdeit.config.schema import Config

_COLUMNS = 78
"""The columns of a comment."""


def describe_recipe(recipe: Callable[[], Config]) -> str:
    """Return the first sentence of a recipe's docstring, without its full stop."""
    first = " ".join((recipe.__doc__ or "").partition("\n\n")[0].split())
    return first.partition(". ")[0].rstrip(".")


def format_settings(config: Config, description: str, plan: str) -> str:
    """Return settings as the text of a YAML file for --config, each field under its meaning.

    description: several lines for the beginning of the file; plan: the plan in one line.
    """
    lines = [f"# {line}".rstrip() for line in inspect.cleandoc(description).splitlines()]
    lines += ["#", f"# plan: {plan}"]
    for section in dataclasses.fields(config):
        part = getattr(config, section.name)
        lines += ["", f"{section.name}:"]
        for name, value in config.to_dict()[section.name].items():
            lines += _format_field(name, value, read_field_docs(type(part)).get(name, ""))
    return "\n".join(lines) + "\n"


def _format_field(name: str, value: object, doc: str) -> Iterator[str]:
    comment = textwrap.wrap(" ".join(doc.split()), _COLUMNS, break_long_words=False)
    yield from (f"  # {line}" for line in comment)
    # in one line, without the braces of a mapping
    text = yaml.safe_dump({name: value}, default_flow_style=True, width=10_000)
    yield f"  {text.strip()[1:-1]}"


def read_field_docs(section: type) -> dict[str, str]:
    """Return the docstring under each field of a dataclass, also of an inherited one, by the
    field's name."""
    docs: dict[str, str] = {}
    for kind in reversed(section.__mro__):
        if dataclasses.is_dataclass(kind):
            docs |= _read_own_docs(kind)
    return docs


@functools.cache
def _read_own_docs(section: type) -> dict[str, str]:
    body = ast.parse(textwrap.dedent(inspect.getsource(section))).body[0]
    assert isinstance(body, ast.ClassDef)
    docs = {}
    for field, below in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr):
            docs[ast.unparse(field.target)] = str(ast.literal_eval(below.value))
    return docs
