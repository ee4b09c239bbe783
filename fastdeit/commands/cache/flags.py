"""The flags of `fastdeit cache build` and `sample`; any flag of the training command may follow."""

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from fastdeit.config.parse import require
from fastdeit.teacher_cache.format import DEFAULT_K, KINDS
from fastdeit.teacher_cache.record import JobShard

_TRAIN = (
    "Any flag of the training command may follow (fastdeit train --help). Those of the data, the "
    "augmentation, the mixing and the teacher decide the records; the others change nothing."
)


def make_parser(action: Callable[..., int]) -> argparse.ArgumentParser:
    """Return a parser for an action that trains nothing, but accepts the flags of a training."""
    parser = argparse.ArgumentParser(
        prog=f"fastdeit cache {action.__name__}",
        usage=f"fastdeit cache {action.__name__} [FLAGS] [FLAGS OF THE TRAINING COMMAND]",
        description=action.__doc__,
        epilog=_TRAIN,
        allow_abbrev=False,
    )
    epochs = "300: the first 300, as in training; 0-299 or 0-9,20-20: these; default: all"
    parser.add_argument("--epochs", help=epochs)
    return parser


def add_record_flags(parser: argparse.ArgumentParser, used: bool) -> None:
    """Add the flags of a recording. used: False if they are accepted, so that the command of the
    recording can be repeated, but have no effect."""

    def text(words: str) -> str:
        return words if used else argparse.SUPPRESS

    folder = text("the cache's folder; default: --cache of the training command")
    parser.add_argument("-o", "--output", type=Path, help=folder)
    kinds = text("hard: the class; topk: the largest logits; default: as --distillation-type needs")
    parser.add_argument("--kind", choices=KINDS, help=kinds)
    k = text(f"logits per sample with topk; default: {DEFAULT_K}, or all classes")
    parser.add_argument("--k", type=int, help=k)
    part = text("3/8: this is the third of eight independent jobs")
    parser.add_argument("--part", default="1/1", help=part)


def choose_kind(asked: str | None, distillation_type: str) -> str:
    """Return the kind of records: the requested one, or the smallest that the loss can use.

    Raises ValueError for a kind that the loss cannot use.
    """
    is_soft = distillation_type == "soft"
    require(asked != "hard" or not is_soft, "kind", asked, "topk with --distillation-type soft")
    return asked or ("topk" if is_soft else "hard")


def parse_part(text: str) -> JobShard:
    """Parse --part, as 3/8. Raises SettingError."""
    match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    require(match is not None, "part", text, "NUMBER/JOBS, as 3/8")
    assert match is not None
    return JobShard(int(match[1]), int(match[2]))


def parse_epochs(text: str | None) -> list[int]:
    """Parse --epochs, a number of epochs as in training, or spans as 0-299 or 0-9,20; return the
    epochs, ascending; none for None. Raises SettingError."""
    if text is None:
        return []
    if count := training_epochs(text):
        return list(range(int(count[1])))
    allowed = "a number of epochs, as 300, or spans from 0, as 0-299, 7-7 for one, or 0-9,20"
    epochs: set[int] = set()
    for item in text.split(","):
        match = re.fullmatch(r"([0-9]{1,6})(?:-([0-9]{1,6}))?", item.strip())
        require(match is not None and not text.isdigit(), "epochs", text, allowed)
        assert match is not None
        first, last = int(match[1]), int(match[2] or match[1])
        require(first <= last, "epochs", text, allowed)
        epochs.update(range(first, last + 1))
    return sorted(epochs)


def training_epochs(text: str | None) -> Sequence[str]:
    """Return --epochs as a flag of the training command if it is a number of epochs, else no
    flag."""
    is_number = text is not None and re.fullmatch(r"0*[1-9][0-9]{0,5}", text)
    return ["--epochs", str(text)] if is_number else []
