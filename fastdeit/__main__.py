"""`fastdeit COMMAND` and `python -m fastdeit COMMAND`."""

import sys
from collections.abc import Callable, Sequence


def train(argv: Sequence[str]) -> int:
    """train a model on one process (many: deepspeed fastdeit/train.py)"""
    from fastdeit.commands.train import train_command

    return train_command(argv, prog="fastdeit train")


def index(argv: Sequence[str]) -> int:
    """look at every image of a data set, and keep the table"""
    from fastdeit.commands.index import index_command

    return index_command(argv)


def cache(argv: Sequence[str]) -> int:
    """record the teacher's answers, join recordings, look into them"""
    from fastdeit.commands.cache import cache_command

    return cache_command(argv)


def preview(argv: Sequence[str]) -> int:
    """what the model will see of chosen samples, as a picture"""
    from fastdeit.commands.preview import preview_command

    return preview_command(argv)


def replay(argv: Sequence[str]) -> int:
    """take one step of a run again, and show all that went into it"""
    from fastdeit.commands.replay import replay_command

    return replay_command(argv)


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    command.__name__: command for command in (train, index, cache, preview, replay)
}


def main() -> int:
    """Runs the command that the first argument names; exit code 2 for any other."""
    name, *argv = sys.argv[1:] or ["--help"]
    if name in COMMANDS:
        return COMMANDS[name](argv)
    lines = [f"  {command.__name__:<8} {command.__doc__}" for command in COMMANDS.values()]
    asked = name in ("-h", "--help")
    usage = "\n".join(
        ["usage: fastdeit COMMAND [FLAGS]", *lines, "  COMMAND --help lists its flags"]
    )
    print(
        usage if asked else f"fastdeit: error: no command {name!r}\n{usage}",
        file=sys.stdout if asked else sys.stderr,
    )
    return 0 if asked else 2


if __name__ == "__main__":
    sys.exit(main())
