"""`fastdeit completion SHELL`: print the script by which a shell completes commands, flags, their
values, files and folders.

fastdeit completion bash > ~/.local/share/bash-completion/completions/fastdeit
fastdeit completion zsh > ~/.zsh/completions/_fastdeit    (a folder of $fpath)
fastdeit completion fish > ~/.config/fish/completions/fastdeit.fish

The script needs nothing else: at a key press no code of fastdeit runs. Write it again after an
upgrade.
"""

import argparse
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import tyro

from fastdeit.commands.errors import one_line_errors
from fastdeit.config.options import parse_options
from fastdeit.display.terminal import Terminal

# names of flags and places that take a file
_FILES = set(
    "attention cache checkpoint class-map config data data-path deepspeed-config finetune image "
    "images output path predictions real-labels resume runs subject "
    "teacher-path".split()
)
_FOLDERS = set("data-cache dir output-dir run".split())


@dataclass(frozen=True)
class CompletionOptions:
    """The flags of `fastdeit completion`."""

    shell: tyro.conf.Positional[Literal["bash", "zsh", "fish"]]
    """The shell that reads the script."""


def completion_command(argv: Sequence[str], summaries: Mapping[str, str]) -> int:
    """Run `fastdeit completion`; return 0.

    summaries: one line on each command, by name. Exit with code 2 for an unknown shell.
    """
    with one_line_errors():
        options = parse_options(argv, CompletionOptions, "fastdeit completion", __doc__ or "")
    Terminal().say(write_script(options.shell, summaries))
    return 0


def write_script(shell: str, summaries: Mapping[str, str]) -> str:
    """Return the script of a shell, made from the parsers of all commands; summaries: one line on
    each command, by name."""
    import shtab

    from fastdeit.commands.parsers import build_parser  # imports every command, and so torch

    parser = build_parser(summaries)
    for action in _list_actions(parser):
        name = action.dest.rpartition(".")[2].replace("_", "-")
        if name in _FOLDERS:
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
        elif name in _FILES:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    # with shtab 1.13 zsh completes one word where several are accepted
    return re.sub(r'^  "\(\*\)::?', '  "*:', shtab.complete(parser, shell), flags=re.MULTILINE)


def _list_actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Yield the flags and places of a parser and of its subcommands."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from _list_actions(child)
