"""The commands in the `sh` blocks of README and docs/: found, parsed by the parsers of fastdeit,
and run in small, in a folder that has what they name."""

import argparse
import functools
import importlib
import pkgutil
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from deepspeed.launcher.runner import parse_args as parse_launcher

import fastdeit.commands
from fastdeit.__main__ import COMMANDS
from fastdeit.config.schema import Config
from tests.support.launching import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_IS_SCRIPT = re.compile(r"^(?:for|if|while) ", re.MULTILINE)
_IS_WHOLE = re.compile(
    r"(?:(?:fastdeit|python -m fastdeit) \w+|deepspeed) (?!.*(?:\.\.\.|\[|--help))"
)
# what `...` stands for: flags that the page has named before
_TEACHER = ["--teacher-path", "regnety_160.safetensors"]
_RECORDED = ["--data-path", "DATA", *_TEACHER]
# what a page names -> what is there in small
_SMALL = {
    "0-299": "0-1",
    "300": "2",
    "regnety_160": "test_resnet",
    "regnety_160-a5fe301d.pth": "regnety_160.safetensors",
    "RUN/checkpoints/step-00012510": "RUN/checkpoints/step-00000003",
    "https://dl.fbaipublicfiles.com/deit/regnety_160-a5fe301d.pth": "regnety_160.safetensors",
    "https://dl.fbaipublicfiles.com/deit/deit_base_patch16_224-b5f2ef4d.pth": "runs/NAME",
}
_NUMBERS = {"N": "7", "R": "0"}
_SIZES = {"embed_dim": 24, "depth": 2, "num_heads": 3, "patch_size": 8}


class Accepted(BaseException):
    """A command line that the parser of its command has accepted."""


class Command(NamedTuple):
    """A command of a page: its line, with continued lines joined, or a whole script."""

    page: str
    line: str


class Call(NamedTuple):
    """A command of fastdeit: its name in COMMANDS, and its arguments."""

    name: str
    argv: list[str]


def find_commands() -> list[Command]:
    """Return the commands of all pages in their order; a block with a loop is one command."""
    return [
        Command(page.relative_to(ROOT).as_posix(), line)
        for page in PAGES
        for line in read_lines(page.read_text(encoding="utf-8"))
    ]


def read_lines(text: str) -> list[str]:
    """Return the commands in the `sh` blocks of a text, with continued lines joined."""
    found = []
    for block in _BLOCK.findall(text):
        is_script = _IS_SCRIPT.search(block)
        lines = [block] if is_script else block.replace("\\\n", " ").splitlines()
        found += [line.strip() for line in lines if line.strip()]
    return found


def find_spans(page: Path) -> list[str]:
    """Return the commands in the code spans of a page that are whole: without `...` and `[...]`,
    and with more than the names of the program and the command."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.M)
    spans = (" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text))
    return [span for span in spans if _IS_WHOLE.match(span.replace("cache ", "", 1))]


def read_call(line: str) -> Call | None:
    """Return the command of fastdeit in a line, under any launcher; None for another program.

    DeepSpeed's parser reads the flags of its launcher.
    """
    words = [_NUMBERS.get(word, word) for word in shlex.split(line, comments=True)]
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        del words[0]
    match words:
        case ["fastdeit", name, *argv] | ["python", "-m", "fastdeit", name, *argv]:
            return _fill(name, argv)
        case ["srun", *rest]:
            return read_call(shlex.join(rest[rest.index("fastdeit") :]))
        case ["sbatch", *rest] if "--wrap" in rest:
            return read_call(rest[rest.index("--wrap") + 1].replace("$SLURM_ARRAY_TASK_ID", "1"))
        case ["sbatch", *rest]:
            return _fill("train", rest[rest.index("docs/fastdeit.sbatch") + 1 :])
        case ["deepspeed", *rest]:
            launch = parse_launcher(rest)
            if launch.module:
                assert launch.user_script == "fastdeit", line
                return _fill(launch.user_args[0], launch.user_args[1:])
            assert launch.user_script == "fastdeit/train.py", line
            return _fill("train", launch.user_args)
    return None


def _fill(name: str, argv: Sequence[str]) -> Call:
    """Return a command with the flags that `...` stands for, without a shell's `> FILE`."""
    argv = argv[: argv.index(">")] if ">" in argv else argv
    rest: list[str] = []
    if name == "cache" and argv[0] == "build":
        rest = [*_RECORDED, *([] if "-o" in argv else ["-o", "CACHE"])]
    elif name == "train" and "--teacher-path" not in argv:
        rest = _TEACHER
    return Call(name, [word for part in argv for word in (rest if part == "..." else [part])])


def parse(call: Call, patch: pytest.MonkeyPatch) -> None:
    """Let a command read its command line, and stop it there. Raises SystemExit if it is wrong."""

    def stop(read: Callable[..., Any]) -> Callable[..., Any]:
        def read_and_stop(*args: Any, **settings: Any) -> Any:
            read(*args, **settings)
            raise Accepted

        return read_and_stop

    for reader in ("parse_options", "parse_config"):
        _replace(reader, stop, patch)
    patch.setattr(argparse.ArgumentParser, "parse_args", stop(argparse.ArgumentParser.parse_args))
    with pytest.raises(Accepted):
        COMMANDS[call.name](call.argv)


def run(command: Command, patch: pytest.MonkeyPatch) -> None:
    """Run a command in the working directory, in this process, in small.

    Raises AssertionError if its exit code is not 0. A training begins anew.
    """
    call = read_call(command.line)
    if call is None:
        assert "\n" in command.line or command.line.startswith("rm "), f"not run: {command.line}"
        subprocess.run(["bash", "-euc", command.line], check=True)
        return

    def shrink(read: Callable[..., tuple[Config, str]]) -> Callable[..., tuple[Config, str]]:
        def read_and_shrink(*args: Any, **settings: Any) -> tuple[Config, str]:
            config, recipe = read(*args, **settings)
            if call.name == "train":
                _remove(Path(config.run.output_dir))
            return _shrink(config), recipe

        return read_and_shrink

    if call.name != "estimate":  # it computes, and has the machines of its flags
        _replace("parse_config", shrink, patch)
    assert COMMANDS[call.name]([_SMALL.get(word, word) for word in call.argv]) == 0, command.line


def _shrink(config: Config) -> Config:
    """Return a run of two epochs with a small model on small images."""
    name = config.model.model
    is_ours = name.startswith("deit")
    network = {"model": name} if is_ours or not name else {"model": "test_resnet"}
    teacher = config.distill.teacher_model
    batch = 64 if config.data.data_set == "digits" else 8
    return config.replace(
        data={"input_size": 32},
        model={**network, **(_SIZES if is_ours else {})},
        distill={"teacher_model": "test_resnet"} if teacher.startswith("regnety") else {},
        optim={
            "batch_size": batch,
            "micro_batch": 0,
            "epochs": 2,
            "warmup_epochs": 0,
            "min_lr": 0.0,
        },
    )


def _remove(folder: Path) -> None:
    if folder.is_symlink():
        folder.unlink()
    elif folder.exists():
        shutil.rmtree(folder)


@functools.cache
def _import_commands() -> None:
    for module in pkgutil.walk_packages(fastdeit.commands.__path__, "fastdeit.commands."):
        importlib.import_module(module.name)


def _replace(
    reader: str,
    wrap: Callable[[Callable[..., Any]], Callable[..., Any]],
    patch: pytest.MonkeyPatch,
) -> None:
    """Wrap a parser wherever a module of fastdeit has imported it."""
    _import_commands()
    ours = [module for name, module in sys.modules.items() if name.startswith("fastdeit")]
    for module in ours:
        if reader in vars(module):
            patch.setattr(module, reader, wrap(getattr(module, reader)))
