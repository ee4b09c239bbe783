"""Tables of a run: its state, results, settings, events, versions."""

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastdeit.config.changes import list_values
from fastdeit.config.parse import name_flag
from fastdeit.display.console import score_table
from fastdeit.display.progress import format_duration
from fastdeit.report.comparison.settings import find_changes
from fastdeit.report.events import read_number
from fastdeit.report.page.curves import find_steps_per_epoch
from fastdeit.report.page.plots import find_mark
from fastdeit.report.page.tables import Column, Table, format_count, format_number
from fastdeit.report.record import Line, RunRecord

_MOST_EVENTS = 500


def describe_state(record: RunRecord) -> str:
    """Return whether a run is finished, and how far it is."""
    per_epoch = find_steps_per_epoch(record)
    epochs = f" ({format_number(record.last_step / per_epoch)} epochs)" if per_epoch else ""
    done = f"{format_count(record.last_step, 'step')}{epochs}"
    if record.summary is not None:
        return f"finished after {done}"
    total = per_epoch * record.settings.optim.epochs if record.settings else 0
    return f"{record.state}; the log has {done}{f' of {total:,}' if total else ''}"


def tabulate_facts(records: Sequence[RunRecord], names: Sequence[str]) -> Table:
    """Return what a reader wants first of all, with a column for each run."""
    facts = [_list_facts(record) for record in records]
    titles = list(dict.fromkeys(title for one in facts for title in one))
    rows = [(title, *(one.get(title, "") for one in facts)) for title in titles]
    columns = (Column("fact"), *map(Column, names))
    return Table("The run" if len(records) == 1 else "The runs", columns, tuple(rows))


def _list_facts(record: RunRecord) -> dict[str, str]:
    facts = {"folder": record.name, "state": describe_state(record), "recipe": record.recipe}
    if record.settings is not None:
        settings = record.settings
        facts["model"] = settings.model.model
        teacher = settings.distill.teacher_model or settings.distill.teacher_path
        facts["teacher"] = teacher if settings.distill.distillation_type != "none" else "none"
        facts["data"] = f"{settings.data.data_path}, {settings.data.input_size} px"
    facts["best evaluation"] = _describe_best(record)
    facts["duration"] = _describe_duration(record)
    speeds = [read_number(line.get("images_per_s")) for line in record.lines]
    known = [speed for speed in speeds if math.isfinite(speed)]
    facts["speed"] = f"{format_number(float(np.median(known)))} images/s (median)" if known else ""
    facts["weights"] = _list_weights(record)
    return {title: text for title, text in facts.items() if text}


def _describe_best(record: RunRecord) -> str:
    """Return the evaluation whose weights the run stores as its best (`CheckpointWriter.scores`):
    by the EMA where there is one."""
    scored = [(_find_score(line), line) for line in record.evaluations]
    known = [(score, line["step"], line) for score, line in scored if math.isfinite(score)]
    if not known:
        return ""
    score, step, line = max(known, key=lambda one: one[:2])
    epoch = read_number(line.get("epoch"))
    where = f" (epoch {format_number(epoch)})" if math.isfinite(epoch) else ""
    return f"{score:.2f} % top-1 at step {step:,}{where}"


def _find_score(line: Line) -> float:
    top1 = line.get("ema/both/top1", line.get("model/both/top1"))
    return read_number(top1)


def _describe_duration(record: RunRecord) -> str:
    """Return the time that all starts took; of a log without it, the time from the first start or
    line to the last line."""
    lines = [*record.lines, *record.evaluations]
    taken = [read_number(line.get("seconds_elapsed")) for line in lines]
    known = [seconds for seconds in taken if math.isfinite(seconds)]
    seconds = max(known) if known else _measure_span(record)
    pauses = f" in {len(record.attempts)} starts" if len(record.attempts) > 1 else ""
    return f"{format_duration(seconds)}{pauses}" if seconds else ""


def _measure_span(record: RunRecord) -> float:
    starts = [attempt.time for attempt in record.attempts[:1] if attempt.time]
    lines = [read_number(line.get("time")) for line in (*record.lines, *record.evaluations)]
    times = [value for value in (*starts, *lines) if math.isfinite(value) and value > 0]
    return max(times) - min(times) if times else 0.0


def _list_weights(record: RunRecord) -> str:
    folder = record.folder
    files = (folder.model, folder.model_ema, folder.model_best, folder.model_ema_best)
    return ", ".join(file.name for file in files if file.is_file())


def tabulate_results(record: RunRecord, name: str) -> Table | None:
    """Return the accuracies of the newest evaluation, as the end of a run prints them; None without
    one."""
    finite = {key: value for key, value in record.results.items() if math.isfinite(value)}
    shown = score_table(finite)
    columns = [Column(str(column.header), place > 0) for place, column in enumerate(shown.columns)]
    cells = [map(str, column.cells) for column in shown.columns]
    rows = tuple(zip(*cells, strict=True))
    return Table(f"Validation accuracy of {name}", tuple(columns), rows) if rows else None


def tabulate_settings(record: RunRecord, name: str) -> tuple[str, list[Table]]:
    """Return a sentence, and the settings that are not the recipe's, then all."""
    if record.settings is None:
        return "The folder has no config.yaml that can be read.", []
    values = list_values(record.settings)
    everything = Table(
        f"All settings of {name}",
        (Column("setting"), Column("value")),
        tuple((name_flag(field), _show(value)) for field, value in values.items()),
        is_folded=True,
    )
    changes = find_changes(record)
    if changes is None:
        return "The run does not record its recipe, so nothing can be compared.", [everything]
    if not changes:
        return f"The run has the settings of the recipe {record.recipe}; paths aside.", [everything]
    rows = [(name_flag(field), *map(_show, pair)) for field, pair in changes.items()]
    columns = (Column("setting"), Column("value"), Column(f"recipe {record.recipe}"))
    different = Table(f"Settings of {name} that are not the recipe's", columns, tuple(rows))
    verb = "differs" if len(rows) == 1 else "differ"
    text = (
        f"{format_count(len(rows), 'setting')} {verb} from the recipe {record.recipe}, paths aside."
    )
    return text, [different, everything]


def _show(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_show, value))
    return "none" if value is None else str(value)


def tabulate_events(records: Sequence[RunRecord], names: Sequence[str]) -> Table | None:
    """Return the events of all runs, by run and step; None if there are none."""
    several = len(names) > 1
    rows = [
        (
            *((name,) if several else ()),
            f"{event.step:,}",
            find_mark(event.kind).name,
            event.text,
            _format_time(event.time),
        )
        for name, record in zip(names, records, strict=True)
        for event in record.events
    ]
    titles = (*(("run",) if several else ()), "step", "event", "description", "time (UTC)")
    columns = tuple(Column(title, title == "step") for title in titles)
    shown = rows[:_MOST_EVENTS]
    count = f"the first {len(shown):,} of {len(rows):,}" if len(shown) < len(rows) else "all"
    return Table(f"Events, {count}", columns, tuple(shown)) if rows else None


def _format_time(seconds: float | None) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds)) if seconds else ""
    except (OverflowError, ValueError, OSError):  # no time of this era
        return ""


def tabulate_origin(record: RunRecord, name: str) -> list[Table]:
    """Return where a run ran, with which versions, and the hashes of its inputs."""
    newest = record.attempts[-1] if record.attempts else None
    facts: dict[str, str] = {}
    if newest is not None:
        facts["device"] = newest.device
        facts["processes"] = str(newest.world_size)
        facts["precision"] = newest.precision
        facts["ZeRO stage"] = str(newest.zero_stage)
        facts["code"] = newest.code
    facts |= {package: str(version) for package, version in record.versions.items()}
    tables = [
        (f"Hardware and versions of {name}", facts),
        (f"Inputs of {name}, from inputs.json", _flatten(record.inputs)),
    ]
    return [_list_pairs(caption, pairs) for caption, pairs in tables if any(pairs.values())]


def _list_pairs(caption: str, pairs: Mapping[str, str]) -> Table:
    rows = tuple((key, value) for key, value in pairs.items() if value)
    return Table(caption, (Column("name"), Column("value")), rows)


def _flatten(value: Any, name: str = "") -> dict[str, str]:
    """Return the values of nested objects by their names joined with a colon."""
    if not isinstance(value, dict):
        return {name: _show(value)}
    joined: dict[str, str] = {}
    for key, item in value.items():
        joined |= _flatten(item, f"{name}: {key}" if name else str(key))
    return joined
