"""A check, its target and its result. The module imports no library."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warning", "broken", "not applicable"]
SEVERITY: tuple[Status, ...] = ("not applicable", "ok", "warning", "broken")
"""Every status, the most serious last."""
MIB = 2**20
GIB = 2**30


@dataclass(frozen=True)
class Finding:
    """The result of a check, and the change that it asks for, `cure`, which may be empty."""

    status: Status
    found: str
    cure: str = ""


def good(found: str) -> Finding:
    """Return the finding of a check that found nothing to change."""
    return Finding("ok", found)


def warn(found: str, cure: str) -> Finding:
    """Return the finding of a check of something that works, but slowly or not always."""
    return Finding("warning", found, cure)


def fail(found: str, cure: str) -> Finding:
    """Return the finding of a check of something that training needs and that does not work."""
    return Finding("broken", found, cure)


def absent(found: str) -> Finding:
    """Return the finding of a check that does not apply to this machine."""
    return Finding("not applicable", found)


def warn_of(found: str, faults: list[tuple[str, str]]) -> Finding:
    """Return a warning that lists (fault, cure) pairs after `found`; `found` alone, without a
    warning, if there are none."""
    if not faults:
        return good(found)
    named = "; ".join(fault for fault, _ in faults)
    return warn(f"{found}; {named}" if found else named, "; ".join(cure for _, cure in faults))


@dataclass(frozen=True)
class Target:
    """The folders and devices that the checks examine, in a form for other processes.

    scratch: a folder that a check may create and write to; it need not remove it.
    """

    data_path: str = ""
    train_split: str = "train"
    output_dir: str = "."
    scratch: str = ""
    gpus: int = 0
    """The number of GPUs of this machine that the driver lists."""


@dataclass(frozen=True)
class Check:
    """A check of the table.

    each_rank: whether every rank runs it, or the first rank of each machine. limit_s: the seconds
    after which the check is broken. differs: the status if the finding of a rank is not that of
    rank 0.
    """

    name: str
    run: Callable[[Target], Finding]
    needs: tuple[str, ...] = ()
    """The other checks and libraries that it needs; if one of them is broken, it is skipped."""
    limit_s: float = 30
    each_rank: bool = False
    differs: Status = "ok"
    quick: bool = True
    """Whether it also runs with --quick."""
