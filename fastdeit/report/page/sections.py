"""The sections of the page, in their order, made from what is known of the runs."""

from collections.abc import Iterable, Sequence
from typing import Any

from fastdeit.audit.findings import Audit
from fastdeit.report.differences import Differences, Group
from fastdeit.report.page.checklist import tabulate_audit
from fastdeit.report.page.curves import Panel, find_steps_per_epoch, list_panels, thin
from fastdeit.report.page.facts import (
    tabulate_events,
    tabulate_facts,
    tabulate_origin,
    tabulate_results,
    tabulate_settings,
)
from fastdeit.report.page.models import (
    place_confusions,
    place_pictures,
    tabulate_classes,
    tabulate_disagreement,
    tabulate_tokens,
)
from fastdeit.report.page.parts import Content, Part, Plot, Runs, Section
from fastdeit.report.page.plots import (
    TimeAxis,
    draw_panel,
    draw_tokens,
    find_mark,
    group_events,
    has_cosine,
    list_keys,
)
from fastdeit.report.page.summaries import describe_panel, tabulate_panel
from fastdeit.report.page.tables import Column, Table, format_count
from fastdeit.report.pictures import Pictures
from fastdeit.report.record import RunRecord


def build_content(
    records: Sequence[RunRecord],
    pictures: Sequence[Pictures],
    names: Sequence[str],
    differences: Differences | None = None,
    audits: Sequence[Audit | None] = (),
) -> Content:
    """Return the content of the page. names: those of the runs, all different; differences: those
    of several runs; audits: one for each run, or none."""
    runs = Runs(records, pictures, names, audits or [None] * len(records))
    axis = _share_axis(records)
    sections = [
        *([_differences(runs, differences)] if differences is not None else []),
        _overview(runs),
        _curves(runs, axis),
        _one_table("events", "Events", tabulate_events(records, names)),
        *_model_sections(runs),
        _settings(runs),
        Section(
            "paper",
            "Comparison with the paper",
            "What DeiT's paper (arXiv 2012.12877) specifies, and what the run has, as it is built.",
            runs.each(lambda run: _audit(runs, run)),
        ),
        Section("origin", "Versions and hardware", parts=runs.each(lambda run: _origin(runs, run))),
    ]
    shown = [section for section in sections if section.parts or section.plots]
    missing = _missing(runs)
    return Content([*shown, *missing], runs.figures, axis, _list_marks(records))


def _share_axis(records: Sequence[RunRecord]) -> TimeAxis:
    per_epoch = {find_steps_per_epoch(record) for record in records}
    last = max(record.last_step for record in records)
    return TimeAxis(last, per_epoch.pop() if len(per_epoch) == 1 else 0)


def _overview(runs: Runs) -> Section:
    facts = Part(tables=[tabulate_facts(runs.records, runs.names)])
    results = runs.each(
        lambda run: Part(tables=_present([tabulate_results(runs.records[run], runs.names[run])]))
    )
    return Section("overview", "Overview", parts=[facts, *results])


def _differences(runs: Runs, differences: Differences) -> Section:
    """Return the groups in which the runs differ, and the names of the others."""
    groups = differences.groups
    different = [group for group in groups if any(row.differs for row in group.rows)]
    equal = [group.title for group in groups if group.rows and group not in different]
    text = "Rows that differ between the runs; empty: not recorded."
    if equal:
        text += f" Equal in all runs that record them: {', '.join(equal)}."
    parts = [_compare(runs, group) for group in different]
    return Section("differences", "Differences", text, parts or [Part(text="None is recorded.")])


def _compare(runs: Runs, group: Group) -> Part:
    rows = tuple((row.name, *row.values) for row in group.rows if row.differs)
    equal = len(group.rows) - len(rows)
    caption = f"Differences of {group.title}; {format_count(equal, 'other row')} equal"
    table = Table(caption, (Column("what"), *map(Column, runs.names)), rows)
    return Part(group.title.capitalize(), tables=[table])


def _curves(runs: Runs, axis: TimeAxis) -> Section:
    panels = list_panels(runs.records)
    events = [record.events for record in runs.records]
    for number, panel in enumerate(panels):
        runs.figures[f"plot-{number}"] = draw_panel(panel, runs.names, events, axis)
    plots = [
        Plot(
            f"plot-{number}",
            panel.kind.title,
            panel.kind.unit,
            list_keys(panel, runs.names) if len(panel.series) > 1 else (),
            describe_panel(panel, runs.names),
            len({one.run for one in panel.series}),
            tabulate_panel(panel, runs.names),
        )
        for number, panel in enumerate(panels)
    ]
    return Section("curves", "Curves", _explain_curves(panels), plots=plots)


def _explain_curves(panels: Sequence[Panel]) -> str:
    text = (
        "All plots share one axis, the optimizer steps: drag across a plot, or name the steps, to "
        "see a part of it. A button below a plot hides or shows a curve."
    )
    if any(len(thin(one).steps) < len(one.steps) for panel in panels for one in panel.series):
        text += (
            " Long curves are thinned: of each of 400 equal parts the smallest and the largest "
            "value are drawn."
        )
    return text


def _list_marks(records: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """Return the legend of the events."""
    groups = group_events([event for record in records for event in record.events])
    return [
        {"kind": kind, "count": len(found), **find_mark(kind)._asdict()}
        for kind, found in groups.items()
    ]


def _one_table(name: str, title: str, table: Table | None, text: str = "") -> Section:
    return Section(name, title, text, [Part(tables=[table])] if table else ())


def _model_sections(runs: Runs) -> list[Section]:
    """Return what the models see, attend to and confuse. The pictures that matter most come first,
    as those that do not fit are dropped."""
    sections = {
        "samples": Section(
            "samples",
            "Samples as planned",
            "The first samples of the run: the stored image with its crop, the image augmented, "
            "and the image mixed with its partner, with the planned operations in their order.",
            runs.each(lambda run: _gallery(runs, run, "samples")),
        ),
        "confusions": Section(
            "confusions",
            "Most confused classes",
            "The pairs of classes with the most validation images of one that were given the "
            "other.",
            runs.each(lambda run: _confusions(runs, run)),
        ),
        "attention": Section(
            "attention",
            "Attention maps",
            "Validation images, and where each special token attends: bright is much.",
            runs.each(lambda run: _gallery(runs, run, "attention")),
        ),
        "tokens": Section(
            "tokens",
            "Tokens and heads",
            "The cosine of class and distillation token by layer (in the paper, DeiT-B on "
            "ImageNet: 0.06 learned, 0.93 at the last layer), and how often the heads and the "
            "teacher answer differently.",
            runs.each(lambda run: _tokens(runs, run)),
        ),
    }
    classes = _one_table("classes", "Classes", tabulate_classes(runs.pictures, runs.names))
    order = ("samples", "attention", "tokens", "confusions")
    return [*(sections[name] for name in order), classes]


def _gallery(runs: Runs, run: int, name: str) -> Part:
    figures = place_pictures(getattr(runs.pictures[run], name), runs.budget)
    return Part(runs.titles[run], pictures=figures)


def _confusions(runs: Runs, run: int) -> Part:
    figures = place_confusions(runs.pictures[run], runs.budget)
    return Part(runs.titles[run], pictures=figures)


def _tokens(runs: Runs, run: int) -> Part:
    found = runs.pictures[run]
    name = runs.names[run]
    tables = _present([tabulate_tokens(found, name), tabulate_disagreement(found, name)])
    plot = None
    if any(map(has_cosine, found.tokens)):
        runs.figures[f"tokens-{run}"] = draw_tokens(found.tokens)
        plot = Plot(f"tokens-{run}", "Cosine of both tokens", name, (), (), 0, tables[0])
    return Part(runs.titles[run], tables=tables[1:] if plot else tables, plot=plot)


def _settings(runs: Runs) -> Section:
    parts = []
    for run, record in enumerate(runs.records):
        text, tables = tabulate_settings(record, runs.names[run])
        parts.append(Part(runs.titles[run], text, tables))
    return Section("settings", "Configuration", parts=parts)


def _audit(runs: Runs, run: int) -> Part:
    audit = runs.audits[run]
    if audit is None:
        return Part()
    text, table = tabulate_audit(audit, runs.names[run])
    return Part(runs.titles[run], text, [table])


def _origin(runs: Runs, run: int) -> Part:
    return Part(runs.titles[run], tables=tabulate_origin(runs.records[run], runs.names[run]))


def _missing(runs: Runs) -> list[Section]:
    """Return the section with the reasons why something is missing, if there are any."""
    notes = [
        f"{title}: {note}" if title else note
        for title, record, found in zip(runs.titles, runs.records, runs.pictures, strict=True)
        for note in (*_list_absent(record), *record.faults, *found.notes)
    ]
    if runs.budget.dropped:
        notes.append(f"{runs.budget.dropped} pictures are not shown, to bound the page's size.")
    return [Section("missing", "What is missing", notes=notes)] if notes else []


def _list_absent(record: RunRecord) -> list[str]:
    """Return a sentence for each kind of line that the log of the run lacks."""
    absent = []
    if not record.lines:
        absent.append("No curves of training: the log has no line of a step yet.")
    if not record.evaluations:
        absent.append("No accuracy: the run was not evaluated yet.")
    if not any("mfu" in line for line in record.lines):
        absent.append("No MFU: it is logged in bf16, on a GPU whose peak is known.")
    if not any("memory_gb" in line for line in record.lines):
        absent.append("No memory: the run was made by an older version.")
    return absent


def _present(tables: Iterable[Table | None]) -> list[Table]:
    return [table for table in tables if table is not None]
