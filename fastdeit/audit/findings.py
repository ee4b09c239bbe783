"""The findings on each item of the checklist, and the rows that follow from them."""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from fastdeit.audit.checklist import CHECKLIST, Item

Status = Literal["equal", "differs", "cannot be seen"]
"""The result for an item."""


class Finding(NamedTuple):
    """The value that was found for an item; is_equal: whether it is that of the paper; None: this
    is not known."""

    text: str
    is_equal: bool | None


Findings = dict[str, Finding]
"""Findings by the name of the item."""

UNSEEN = Finding("", None)
"""The finding on an item of which nothing is known."""


@dataclass(frozen=True)
class Row(Item):
    """An item, the value that was found for it, and whether this is equal."""

    found: str = ""
    status: Status = "cannot be seen"


@dataclass(frozen=True)
class Audit:
    """The checklist of a run, a recipe or a checkpoint.

    kind: run, settings or checkpoint. notes: what could not be read, and the sources of findings.
    """

    subject: str
    kind: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    def count(self, status: Status) -> int:
        """Return the number of rows with a status."""
        return sum(row.status == status for row in self.rows)

    def describe(self) -> dict[str, Any]:
        """Return the audit as JSON values."""
        return {
            "subject": self.subject,
            "kind": self.kind,
            "equal": self.count("equal"),
            "differs": self.count("differs"),
            "cannot_be_seen": self.count("cannot be seen"),
            "rows": [dict(vars(row)) for row in self.rows],
            "notes": list(self.notes),
        }


def judge(findings: Findings) -> tuple[Row, ...]:
    """Return the rows of the checklist; an item without a finding cannot be seen."""
    return tuple(_judge(item, findings.get(item.name, UNSEEN)) for item in CHECKLIST)


def _judge(item: Item, finding: Finding) -> Row:
    statuses: dict[bool | None, Status] = {True: "equal", False: "differs", None: "cannot be seen"}
    return Row(**vars(item), found=finding.text, status=statuses[finding.is_equal])
