"""The table of the rehearsal: one row a stage, with its memory beside that of a smaller
rehearsal."""

from collections.abc import Iterable, Mapping

Row = Mapping[str, str]
HEADING = [
    "stage",
    "samples",
    "CPU s",
    "peak, MiB",
    "µs a sample more",
    "MiB for a million images more",
    "open files",
    "read, MB",
]
_OF_THE_TABLE = {"index", "index again", "index folder", "index 21k", "start", "start 21k"}
"""The stages whose memory grows with the data set's index; that of the others does not grow."""
_FLAT_FROM = 0.1
"""The scale from which a stage is long enough to show that its memory is flat."""


def list_stages(rows: Iterable[Row]) -> list[list[str]]:
    """Return the table of the largest rehearsal of each stage; rows: oldest first.

    Growing values are compared with those of the smallest rehearsal of the stage, if there is
    another.
    """
    by_stage: dict[str, dict[float, Row]] = {}
    for row in rows:
        by_stage.setdefault(row["stage"], {})[float(row["scale"])] = row
    return [HEADING, *map(_show_stage, by_stage.values())]


def _show_stage(by_scale: Mapping[float, Row]) -> list[str]:
    row, small = by_scale[max(by_scale)], by_scale[min(by_scale)]
    swing = f" ± {row['swing_pct']} %" if row["swing_pct"] and max(by_scale) >= _FLAT_FROM else ""
    return [
        row["stage"],
        f"{int(row['samples']):,}",
        row["cpu_s"],
        f"{row['peak_mib']}{swing}",
        *_show_growth(small, row),
        row["files"],
        row["read_mb"],
    ]


def _show_growth(small: Row, large: Row) -> list[str]:
    """Return the CPU microseconds for one more sample, and the MiB for a million more."""
    samples = int(large["samples"]) - int(small["samples"])
    if not samples:
        return ["", ""]
    micros = 1e6 * (float(large["cpu_s"]) - float(small["cpu_s"])) / samples
    mib = 1e6 * (int(large["peak_mib"]) - int(small["peak_mib"])) / samples
    return [f"{micros:,.3g}", f"{mib:,.0f}" if large["stage"] in _OF_THE_TABLE else ""]
