"""The table of the rehearsal: a stage a row, and its memory beside that of a smaller rehearsal."""

from collections.abc import Iterable, Mapping

Row = Mapping[str, str]
HEADING = [
    "stage",
    "samples",
    "CPU s",
    "µs a sample",
    "peak, MiB",
    "MiB for a million samples more",
    "open files",
    "read, MB",
]
_PAIR = 2


def list_stages(rows: Iterable[Row]) -> list[list[str]]:
    """Return the table of the largest rehearsal of each stage; rows: oldest first.

    Its memory grows from the smallest rehearsal of the stage, if there is another.
    """
    by_stage: dict[str, dict[float, Row]] = {}
    for row in rows:
        by_stage.setdefault(row["stage"], {})[float(row["scale"])] = row
    return [HEADING, *map(_show_stage, by_stage.values())]


def _show_stage(by_scale: Mapping[float, Row]) -> list[str]:
    row = by_scale[max(by_scale)]
    growth = _show_growth(by_scale[min(by_scale)], row) if len(by_scale) >= _PAIR else ""
    swing = f" ± {row['swing_pct']} %" if row["swing_pct"] and not growth else ""
    return [
        row["stage"],
        f"{int(row['samples']):,}",
        row["cpu_s"],
        row["us_per_sample"],
        f"{row['peak_mib']}{swing}",
        growth,
        row["files"],
        row["read_mb"],
    ]


def _show_growth(small: Row, large: Row) -> str:
    """Return the difference of memory for a million samples of difference."""
    millions = (int(large["samples"]) - int(small["samples"])) / 1e6
    if not millions:
        return ""
    return f"{(int(large['peak_mib']) - int(small['peak_mib'])) / millions:,.0f}"
