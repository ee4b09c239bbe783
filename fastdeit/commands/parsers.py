"""The flags of all commands as one parser of argparse, for shell completion."""

import argparse
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from fastdeit.commands.audit import AuditOptions
from fastdeit.commands.cache.command import make_folder_parser, make_merge_parser
from fastdeit.commands.cache.record import make_build_parser
from fastdeit.commands.cache.sample import make_sample_parser
from fastdeit.commands.completion import CompletionOptions
from fastdeit.commands.data.fetch import FetchOptions
from fastdeit.commands.data.index import IndexOptions
from fastdeit.commands.data.pack import PackOptions
from fastdeit.commands.data.preview import make_preview_parser
from fastdeit.commands.doctor import DoctorOptions
from fastdeit.commands.models.analyse import AnalyseOptions
from fastdeit.commands.models.evaluate import EvaluateOptions
from fastdeit.commands.models.export import ExportOptions
from fastdeit.commands.models.predict import PredictOptions
from fastdeit.commands.recipes import RecipesOptions
from fastdeit.commands.runs.compare import CompareOptions
from fastdeit.commands.runs.estimate import EstimateOptions
from fastdeit.commands.runs.replay import make_replay_parser
from fastdeit.commands.runs.report import ReportOptions
from fastdeit.config.cli import make_train_parser
from fastdeit.config.options import make_parser
from fastdeit.config.recipes import RECIPES

Parser = argparse.ArgumentParser

_CHOICES = {"action": ["list", "show", "diff", *RECIPES], "recipe": list(RECIPES)}
"""The values that a flag or place accepts, if its type does not name them."""

PARSERS: dict[str, Callable[..., Any]] = {
    "analyse": AnalyseOptions,
    "audit": AuditOptions,
    "cache build": make_build_parser,
    "cache info": partial(make_folder_parser, "info"),
    "cache merge": make_merge_parser,
    "cache sample": make_sample_parser,
    "cache verify": partial(make_folder_parser, "verify"),
    "compare": CompareOptions,
    "completion": CompletionOptions,
    "doctor": DoctorOptions,
    "estimate": EstimateOptions,
    "evaluate": EvaluateOptions,
    "export": ExportOptions,
    "fetch": FetchOptions,
    "index": IndexOptions,
    "pack": PackOptions,
    "predict": PredictOptions,
    "preview": make_preview_parser,
    "recipes": RecipesOptions,
    "replay": make_replay_parser,
    "report": ReportOptions,
    "train": make_train_parser,
}
"""The dataclass of a command's flags, or a function that returns its parser, by command."""

TRAINS = ("audit", "cache build", "cache sample", "estimate", "preview", "recipes", "replay")
"""The commands that accept the flags of train, too."""


def build_parser(summaries: Mapping[str, str]) -> Parser:
    """Return a parser that describes every command as a subcommand, with its flags.

    summaries: one line on each command, by name. Raises KeyError for a command that `PARSERS` does
    not have.
    """
    root = Parser(prog="fastdeit")
    root.add_argument("--version", action="version", help="print the versions")
    commands = root.add_subparsers()
    for command, summary in summaries.items():
        actions = [name for name in PARSERS if name.startswith(f"{command} ")]
        if not actions:
            _add(commands, command, command, summary)
            continue
        children = commands.add_parser(command, help=summary).add_subparsers()
        for name in actions:
            action = name.split()[1]
            _add(children, action, name, _make(name).description or action)
    return root


def _add(commands: argparse._SubParsersAction, word: str, name: str, summary: str) -> None:
    # if two flags have one name, that of the command itself is used
    parser = commands.add_parser(word, help=_first_sentence(summary), conflict_handler="resolve")
    for source in [make_train_parser()] * (name in TRAINS) + [_make(name)]:
        for action in source._actions:
            _copy(action, parser)


def _copy(action: Any, parser: Parser) -> None:
    """Add a flag or place of another parser, without tyro's metavars, whose quotes and braces have
    a meaning in a shell."""
    names = action.option_strings or [action.dest]
    text = _first_sentence(action.help or "")
    if "--help" in names or action.help == argparse.SUPPRESS:
        return
    if action.nargs == 0:
        parser.add_argument(*names, action="store_true", help=text)
        return
    nargs = None if action.nargs == 1 else action.nargs
    choices = action.choices or _CHOICES.get(names[-1].removeprefix("--"))
    parser.add_argument(*names, nargs=nargs, choices=choices, help=text)


def _make(name: str) -> Any:
    source = PARSERS[name]
    return make_parser(source) if isinstance(source, type) else source()


def _first_sentence(text: str) -> str:
    """Return the first sentence of a text, which may have several lines."""
    return " ".join(text.split()).partition(". ")[0].removesuffix(".")
