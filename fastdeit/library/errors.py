"""Errors of the functions that `import fastdeit` offers: they name arguments, not flags.

The rooms below name flags ("--batch-size must be ..."), as the command line needs it. At the border
of the library each flag of `fastdeit train` in the text of an error becomes the argument of that
name; the type of the error, its attributes and its traceback do not change.
"""

import contextlib
import functools
import re
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

from fastdeit.config.flags import own_flags

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

_FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*\b")
# a command that a message advises does not change, up to the end of the clause
_COMMAND = re.compile(r"(\b(?:fastdeit [a-z]+|deepspeed fastdeit/train\.py) [^;()]*)")


def names_arguments(
    **renamed: str,
) -> Callable[[Callable[Arguments, Result]], Callable[Arguments, Result]]:
    """Return a decorator for a function whose errors are to name arguments.

    renamed: the argument that stands for a field of `Config`, where their names differ, as
    data_path="path".
    """

    def decorate(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        @functools.wraps(function)
        def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
            with argument_errors(**renamed):
                return function(*args, **kwargs)

        return call

    return decorate


@contextlib.contextmanager
def argument_errors(**renamed: str) -> Iterator[None]:
    """Make an error that is raised inside name arguments; renamed: as `names_arguments` takes
    it."""
    try:
        yield
    except Exception as error:
        text = str(error)
        if error.args == (text,):
            error.args = (name_arguments(text, renamed),)
        raise


def name_arguments(text: str, renamed: dict[str, str]) -> str:
    """Return a text with each flag of `fastdeit train` replaced by its argument: `--batch-size` by
    `batch_size`, `--no-model-ema` by `model_ema=False`; not inside a command."""
    known = own_flags()

    def replace(match: re.Match[str]) -> str:
        name = match[0].removeprefix("--").replace("-", "_")
        positive = name.removeprefix("no_")
        if match[0] not in known and positive not in renamed:
            return match[0]
        argument = renamed.get(positive, positive)
        return argument if name == positive else f"{argument}=False"

    parts = _COMMAND.split(text)
    parts[::2] = [_FLAG.sub(replace, part) for part in parts[::2]]
    return "".join(parts)
