"""`fastdeit COMMAND` and `python -m fastdeit COMMAND`: the table of commands."""

import sys
from collections.abc import Callable, Sequence

from fastdeit.commands.imports import pause_collection
from fastdeit.display.terminal import Terminal, end_on_closed_pipe, replace_closed_streams, show_log
from fastdeit.display.text import suggest_near
from fastdeit.distributed.versions import find_commit, versions
from fastdeit.reliability import launcher


def train(argv: Sequence[str]) -> int:
    """train a model in one process (in several: deepspeed fastdeit/train.py)"""
    attached = launcher.attach()  # before the slow imports
    with pause_collection():
        from fastdeit.commands.runs.train import train_command

    return train_command(argv, launcher=attached)


def index(argv: Sequence[str]) -> int:
    """check every image of a data set, and store the tables that training starts from"""
    with pause_collection():
        from fastdeit.commands.data.index import index_command

    return index_command(argv)


def pack(argv: Sequence[str]) -> int:
    """write a data set again, with smaller images, in tar shards or class folders"""
    with pause_collection():
        from fastdeit.commands.data.pack import pack_command

    return pack_command(argv)


def cache(argv: Sequence[str]) -> int:
    """record a teacher's output; merge, describe and verify recordings"""
    with pause_collection():
        from fastdeit.commands.cache.command import cache_command

    return cache_command(argv)


def preview(argv: Sequence[str]) -> int:
    """draw chosen samples as the model will see them"""
    with pause_collection():
        from fastdeit.commands.data.preview import preview_command

    return preview_command(argv)


def replay(argv: Sequence[str]) -> int:
    """repeat one step of a run, and show everything that went into it"""
    launcher.attach()
    with pause_collection():
        from fastdeit.commands.runs.replay import replay_command

    return replay_command(argv)


def compare(argv: Sequence[str]) -> int:
    """compare runs: settings, samples, speed, results, and whether the results differ by chance"""
    with pause_collection():
        from fastdeit.commands.runs.compare import compare_command

    return compare_command(argv)


def report(argv: Sequence[str]) -> int:
    """write a page on runs: curves, pictures, differences"""
    with pause_collection():
        from fastdeit.commands.runs.report import report_command

    return report_command(argv)


def predict(argv: Sequence[str]) -> int:
    """name the classes in images, with probabilities and attention maps"""
    with pause_collection():
        from fastdeit.commands.models.predict import predict_command

    return predict_command(argv)


def export(argv: Sequence[str]) -> int:
    """write weights for timm and the Hub, ONNX or torch.export, and check what was written"""
    with pause_collection():
        from fastdeit.commands.models.export import export_command

    return export_command(argv)


def evaluate(argv: Sequence[str]) -> int:
    """score a checkpoint on a data set"""
    launcher.attach()
    with pause_collection():
        from fastdeit.commands.models.evaluate import evaluate_command

    return evaluate_command(argv)


def audit(argv: Sequence[str]) -> int:
    """compare a run, a recipe or a checkpoint with the paper, item by item"""
    with pause_collection():
        from fastdeit.commands.audit import audit_command

    return audit_command(argv)


def estimate(argv: Sequence[str]) -> int:
    """estimate what a run will need: hours, memory, CPU cores, bandwidth, room, cost"""
    with pause_collection():
        from fastdeit.commands.runs.estimate import estimate_command

    return estimate_command(argv)


def recipes(argv: Sequence[str]) -> int:
    """list the recipes, show one, or compare two"""
    from fastdeit.commands.recipes import recipes_command

    return recipes_command(argv)


def analyse(argv: Sequence[str]) -> int:
    """compare the tokens, attention heads and answers of a checkpoint"""
    with pause_collection():
        from fastdeit.commands.models.analyse import analyse_command

    return analyse_command(argv)


def fetch(argv: Sequence[str]) -> int:
    """fetch a data set at a URL to a local folder"""
    with pause_collection():
        from fastdeit.commands.data.fetch import fetch_command

    return fetch_command(argv)


def completion(argv: Sequence[str]) -> int:
    """print the script by which bash, zsh or fish completes commands and flags"""
    from fastdeit.commands.completion import completion_command

    return completion_command(argv, {name: each.__doc__ or "" for name, each in COMMANDS.items()})


def doctor(argv: Sequence[str]) -> int:
    """check this machine: GPU, packages, network, disk, data, and ten seconds of training"""
    launcher.attach()
    with pause_collection():
        from fastdeit.commands.doctor import doctor_command

    return doctor_command(argv)


_ALL = (
    train,
    index,
    fetch,
    pack,
    cache,
    preview,
    replay,
    compare,
    report,
    evaluate,
    analyse,
    predict,
    export,
    audit,
    estimate,
    recipes,
    doctor,
    completion,
)
COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    command.__name__: command for command in _ALL
}
"""The commands by name."""


def main() -> int:
    """Run the command that the first argument names; return its exit code, 2 for an unknown one."""
    replace_closed_streams()
    show_log()
    words = sys.argv[1:]
    if words and words[0].startswith("--local_rank="):  # deepspeed --module puts it first
        del words[0]
    name, *argv = words or ["--help"]
    if name in COMMANDS:
        try:
            with end_on_closed_pipe():
                return COMMANDS[name](argv)
        except ImportError:
            advice = "fastdeit doctor names what is wrong with the installed packages"
            Terminal(stderr=True).say(advice)
            raise
    if name in ("-h", "--help"):
        Terminal().say(_usage())
        return 0
    if name == "--version":
        Terminal().say(_version())
        return 0
    near = suggest_near(name, COMMANDS)
    Terminal(stderr=True).say(f"fastdeit: error: no command {name!r}{near}; all: fastdeit --help")
    return 2


def _usage() -> str:
    width = max(map(len, COMMANDS))
    rows = [f"  {name:<{width}} {command.__doc__}" for name, command in COMMANDS.items()]
    last = "  COMMAND --help lists its flags; --version prints the versions"
    return "\n".join(["usage: fastdeit COMMAND [FLAGS]", *rows, last])


def _version() -> str:
    """Return the version of fastdeit and of what it computes with, as one line."""
    found = versions()
    commit = find_commit()
    ours = f"fastdeit {found.pop('fastdeit')}{f' ({commit})' if commit else ''}"
    return ", ".join([ours, *(f"{name} {version}" for name, version in found.items())])


if __name__ == "__main__":
    sys.exit(main())
