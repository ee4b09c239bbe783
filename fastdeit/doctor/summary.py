"""The findings of all ranks as one list."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastdeit.doctor.findings import SEVERITY, Check, Finding, Status


@dataclass(frozen=True)
class Row:
    """A finding, with the names of its check and of its rank; host: empty for a single process."""

    check: str
    finding: Finding
    rank: int = 0
    host: str = ""

    @property
    def name(self) -> str:
        """Return the name of the check, with the rank if it is not rank 0."""
        return f"{self.check}, rank {self.rank} ({self.host})" if self.rank else self.check

    def describe(self) -> dict[str, Any]:
        """Return the row as a JSON value."""
        where = {"rank": self.rank, "host": self.host} if self.host else {}
        return {"check": self.check, **dataclasses.asdict(self.finding), **where}

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> "Row":
        """Return the row of a value of `describe`."""
        names = [field.name for field in dataclasses.fields(Finding)]
        finding = Finding(**{name: values[name] for name in names})
        return cls(values["check"], finding, values.get("rank", 0), values.get("host", ""))


def merge_ranks(rows: Sequence[Row], checks: Sequence[Check]) -> list[Row]:
    """Return the rows of rank 0, and those of other ranks that differ where all must be equal, or
    that are worse than rank 0's; checks: their order."""
    merged = []
    for check in checks:
        of_check = sorted(
            (row for row in rows if row.check == check.name), key=lambda row: row.rank
        )
        if of_check:
            first, *others = of_check
            merged.append(first)
            marked = [_mark_difference(row, first, check.differs) for row in others]
            merged += [row for row in marked if _is_worse(row, first)]
    return merged


def _mark_difference(row: Row, first: Row, differs: Status) -> Row:
    """Return the row, as a fault if it must be equal to that of rank 0 and is not."""
    mine, theirs = row.finding, first.finding
    if mine.found == theirs.found or differs == "ok":
        return row
    cure = f"make it equal to rank {first.rank}'s: {theirs.found}"
    cure = f"{mine.cure}; {cure}" if mine.cure else cure
    return dataclasses.replace(
        row, finding=Finding(find_worst([mine.status, differs]), mine.found, cure)
    )


def _is_worse(row: Row, first: Row) -> bool:
    grave = SEVERITY.index(row.finding.status) > SEVERITY.index("ok")
    return grave and row.finding != first.finding


def find_worst(statuses: Sequence[Status]) -> Status:
    """Return the most serious status, ok for none."""
    return max(statuses, key=SEVERITY.index, default="ok")


def count_statuses(rows: Sequence[Row]) -> str:
    """Return a text with the number of rows of each status, the most serious first."""
    counts = [
        (status, sum(row.finding.status == status for row in rows)) for status in reversed(SEVERITY)
    ]
    several = {"warning": "warnings"}
    named = [
        (count, several.get(status, status) if count > 1 else status) for status, count in counts
    ]
    return ", ".join(f"{count} {name}" for count, name in named if count)
