"""The table of a start's time: one row for each part, one column for each number of ranks."""

from collections.abc import Iterable, Mapping

Row = Mapping[str, str]


def list_seconds(rows: Iterable[Row]) -> list[list[str]]:
    """Return the estimated seconds of each part of a start, by number of ranks."""
    rows = [row for row in rows if row["what"] == "estimate"]
    seconds = {(row["part"], row["ranks"]): float(row["value"]) for row in rows}
    ranks = list(dict.fromkeys(row["ranks"] for row in rows))
    table = [["seconds of", *(f"{count} ranks" for count in ranks)]]
    for part in dict.fromkeys(row["part"] for row in rows):
        table.append([part, *(f"{seconds[part, count]:.2f}" for count in ranks)])
    totals = [sum(took for (_, of), took in seconds.items() if of == count) for count in ranks]
    table.append(["**all**", *(f"**{total:.1f}**" for total in totals)])
    return table
