"""The result of a check, and what a check is. Importing this imports no library."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warning", "broken", "not applicable"]
SEVERITY: tuple[Status, ...] = ("not applicable", "ok", "warning", "broken")
"""Every status, the gravest last."""
MIB = 2**20
GIB = 2**30


@dataclass(frozen=True)
class Finding:
    """The result of a check, and the change that it asks for; cure: empty if there is none."""

    status: Status
    found: str
    cure: str = ""


def good(found: str) -> Finding:
    """Return the finding of a check that found nothing to change."""
    return Finding("ok", found)


def warn(found: str, cure: str) -> Finding:
    """Return the finding of something that works, but slowly or not always."""
    return Finding("warning", found, cure)


def fail(found: str, cure: str) -> Finding:
    """Return the finding of something that training needs and that does not work."""
    return Finding("broken", found, cure)


def absent(found: str) -> Finding:
    """Return the finding of a check that has nothing to look at here."""
    return Finding("not applicable", found)


def warn_of(found: str, faults: list[tuple[str, str]]) -> Finding:
    """Return a warning that lists faults, each with its cure; without faults what was found."""
    if not faults:
        return good(found)
    named = "; ".join(fault for fault, _ in faults)
    return warn(f"{found}; {named}" if found else named, "; ".join(cure for _, cure in faults))


@dataclass(frozen=True)
class Target:
    """The places that the checks examine, as text, since it travels to other processes.

    scratch: a folder that a check may create, write to, and need not remove.
    """

    data_path: str = ""
    train_split: str = "train"
    output_dir: str = "."
    scratch: str = ""
    gpus: int = 0
    """Of this machine, as the driver lists them."""


@dataclass(frozen=True)
class Check:
    """A check of the table; each_rank: every rank runs it, else the first rank of a machine does.

    limit_s: after it the check counts as broken. differs: what it means if a rank finds something
    else than rank 0.
    """

    name: str
    run: Callable[[Target], Finding]
    needs: tuple[str, ...] = ()
    """Other checks and libraries; if one of them is broken, this check is skipped."""
    limit_s: float = 30
    each_rank: bool = False
    differs: Status = "ok"
    quick: bool = True
    """False: --quick skips it."""
