"""The comparison of a run with the paper, as the page shows it."""

from fastdeit.audit.findings import Audit
from fastdeit.report.page.tables import Column, Table

_COLUMNS = ("item", "result", "the paper", "where", "this run", "flags that give it")


def tabulate_audit(audit: Audit, name: str) -> tuple[str, Table]:
    """Return a sentence and the checklist of DeiT; name: that of the run."""
    counts = [f"{audit.count('equal')} items are equal", f"{audit.count('differs')} differ"]
    unseen = audit.count("cannot be seen")
    counts += [f"{unseen} cannot be seen"] if unseen else []
    rows = tuple(
        (row.title, row.status, row.paper, row.source, row.found, _list_flags(row.flag, row.status))
        for row in audit.rows
    )
    table = Table(f"{name} and the paper, item by item", tuple(map(Column, _COLUMNS)), rows)
    return f"{', '.join(counts)}.", table


def _list_flags(flag: str, status: str) -> str:
    return flag if status == "differs" else ""
