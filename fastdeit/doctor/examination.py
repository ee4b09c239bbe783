"""All checks of one process, or of all ranks of a launch together."""

import os
import socket
import time
from collections.abc import Generator, Mapping, Sequence
from typing import Any

from fastdeit.distributed.environment import is_first_on_machine
from fastdeit.doctor.checks.gpu import show_one_gpu
from fastdeit.doctor.findings import Check, Target, absent, fail, good
from fastdeit.doctor.processes import run_checks
from fastdeit.doctor.ranks import Meeting
from fastdeit.doctor.summary import Row, merge_ranks
from fastdeit.doctor.table import CHECKS, CLEAN, GROUP, TRIAL

_JOINS = {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
"""The variables with which a process that joins the group uses the store of rank 0's command."""
_ORDER = (*CHECKS, Check("ranks", lambda target: absent("")), GROUP, TRIAL, CLEAN)
SLOWER_S = 300.0
"""The seconds by which another rank may be slower."""
_SOON_S = 10.0


def examine_alone(target: Target, *, quick: bool) -> Generator[Row, None, None]:
    """Yield the result of each check; quick: skip the checks that take seconds."""
    for check, finding in run_checks(_choose([*CHECKS, TRIAL], quick), target):
        yield Row(check.name, finding)


def clean(target: Target) -> list[Row]:
    """Remove the files of the checks; return a row if that fails."""
    rows = [Row(check.name, finding) for check, finding in run_checks([CLEAN], target)]
    return [row for row in rows if row.finding.status != "ok"]


def _choose(checks: Sequence[Check], quick: bool) -> list[Check]:
    return [check for check in checks if check.quick or not quick]


class Rank:
    """This process among the ranks of a launch, and its findings.

    Attributes: number, host, rows, is_cut_off (whether it cannot reach rank 0).
    """

    def __init__(self, target: Target, *, quick: bool) -> None:
        self.number = int(os.environ["RANK"])
        self.host = socket.gethostname()
        self.rows: list[Row] = []
        self.is_cut_off = False
        self._target = target
        self._own_gpu = show_one_gpu(int(os.environ.get("LOCAL_RANK", "0")), target.gpus)
        self._quick = quick

    def examine(self, limit_s: float) -> list[Row] | None:
        """Return the rows of all ranks on rank 0, None on the others.

        limit_s: the seconds that the others may take to start. A rank that cannot reach rank 0
        returns its own rows.
        """
        own = [check for check in CHECKS if check.each_rank or is_first_on_machine()]
        self._check(own, self._own_gpu)
        try:
            meeting = self._meet(limit_s)
            if meeting is not None:
                return self._examine_together(meeting, limit_s)
        except (RuntimeError, OSError, KeyError, ValueError) as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            cure = "see docs/machines.md: --master_addr, --master_port, open ports"
            self._add("ranks", fail(f"rank {self.number} does not reach rank 0: {reason}", cure))
        self.is_cut_off = True
        return self.rows

    def _meet(self, limit_s: float) -> Meeting | None:
        """Wait for the other ranks; return None if torch, which has the store, is broken."""
        return None if "import torch" in self._broken else Meeting(limit_s)

    def _examine_together(self, meeting: Meeting, limit_s: float) -> list[Row] | None:
        here = meeting.gather("here", self.host, limit_s)
        self._report_missing(here)
        if len(here) == int(os.environ["WORLD_SIZE"]):
            self._check([GROUP], _JOINS)
        self._check([TRIAL], self._own_gpu)
        described = [row.describe() for row in self.rows]
        if self.number:
            meeting.give("found", described)
            return None
        found = meeting.gather("found", described, TRIAL.limit_s + GROUP.limit_s)
        self._report_lost(here, found)
        others = [Row.read(row) for rank, rows in found.items() if rank for row in rows]
        return merge_ranks([*self.rows, *others], _ORDER)

    def _check(self, checks: Sequence[Check], variables: Mapping[str, str] | None = None) -> None:
        chosen = _choose(checks, self._quick)
        found = run_checks(chosen, self._target, broken=self._broken, variables=variables)
        for check, finding in found:
            self._add(check.name, finding)

    @property
    def _broken(self) -> set[str]:
        return {row.check for row in self.rows if row.finding.status == "broken"}

    def _add(self, name: str, finding: Any) -> None:
        self.rows.append(Row(name, finding, self.number, self.host))

    def linger(self, limit_s: float) -> None:
        """Wait until the other ranks have reported, if this rank cannot reach rank 0: a launcher
        ends all ranks when one ends with an error. Rank 0 waits only a short time."""
        if self.is_cut_off:
            time.sleep(limit_s + SLOWER_S if self.number else _SOON_S)

    def _report_missing(self, here: Mapping[int, str]) -> None:
        """Add a row that names the ranks that have not started in time."""
        size = int(os.environ["WORLD_SIZE"])
        missing = [str(rank) for rank in range(size) if rank not in here]
        hosts = ", ".join(dict.fromkeys(here.values()))
        if missing:
            found = f"rank {', '.join(missing)} of {size} missing; here are those on {hosts}"
            self._add("ranks", fail(found, "look at the output of the missing ranks' machine"))
        else:
            self._add("ranks", good(f"all {size} are here, on {hosts}"))

    def _report_lost(self, here: Mapping[int, str], found: Mapping[int, Any]) -> None:
        for rank in here.keys() - found.keys():
            cure = "look at the output of its machine"
            self._add("ranks", fail(f"rank {rank} ({here[rank]}) was lost during the checks", cure))
