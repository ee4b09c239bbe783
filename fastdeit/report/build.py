"""A report on runs, made from their folders: the record, what differs, the pictures, the page."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fastdeit.audit.findings import Audit
from fastdeit.config.parse import require_value
from fastdeit.display.terminal import note_failure
from fastdeit.report.differences import compare_runs
from fastdeit.report.page.plots import name_missing as name_missing
from fastdeit.report.page.write import write_page
from fastdeit.report.pictures import Pictures
from fastdeit.report.record import RunRecord, read_run


def write_report(runs: Sequence[Path], output: Path) -> None:
    """Write one HTML page on the runs in these folders, which needs no network.

    Nothing else is written, and no process of a run is disturbed: a run may still train. Raises
    ValueError for a folder that holds no run, and if plotly is not installed; OSError.
    """
    require_value(len(runs) > 0, "runs", len(runs), "at least one")
    missing = name_missing()
    if missing:
        raise ValueError(missing)
    records = [read_run(run) for run in runs]
    notes: list[list[str]] = [[] for _ in records]
    audits = list(map(_audit, records, notes))
    drawn = list(map(_draw, records, notes))
    pictures = [
        replace(one, notes=(*one.notes, *lines)) for one, lines in zip(drawn, notes, strict=True)
    ]
    differences = compare_runs(records) if len(records) > 1 else None
    write_page(output, records, pictures, differences, audits)


def _draw(record: RunRecord, notes: list[str]) -> Pictures:
    """Return the pictures of a run; a failure is a note."""
    from fastdeit.report.drawing.draw import draw_pictures  # torch and DALI import slowly

    with note_failure("the part of images and weights", notes.append):
        return draw_pictures(record)
    return Pictures()


def _audit(record: RunRecord, notes: list[str]) -> Audit | None:
    """Return the checklist of a run with settings, else None; a failure is a note."""
    if record.settings is None:
        return None
    from fastdeit.audit.build import audit_run  # torch imports slowly

    with note_failure("the comparison with the paper", notes.append):
        return audit_run(record.folder.path)
    return None
