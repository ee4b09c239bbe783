"""The tables of README and docs, from the rows of the result files.

python -m benchmarks.tables

Writes each block between `<!-- table NAME -->` and `<!-- end of table -->` in README.md and docs/.
tests/benchmarks/test_tables.py fails if the values of a page are not those of the rows.
"""

import csv
import re
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks.arms import tables as arms
from benchmarks.imagenet.table import list_stages
from benchmarks.launch.table import list_seconds
from benchmarks.measuring.harness import RESULTS
from benchmarks.official.table import compare_trainers

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"(<!-- table ([\w-]+) -->\n).*?(<!-- end of table -->)", re.DOTALL)
RUNS = 3
"""The number of newest runs of a case whose median is used, as ratios differ from run to run."""
Row = Mapping[str, str]
Cells = list[str]


def read_rows(name: str, folder: Path = RESULTS) -> list[Row]:
    """Return the rows of a result file, oldest first."""
    with (folder / f"{name}.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def split_runs(rows: Iterable[Row], ours: str) -> list[dict[str, Row]]:
    """Return the rows of each run by implementation; a run begins with the row of `ours`."""
    runs: list[dict[str, Row]] = []
    for row in rows:
        if row["impl"] == ours:
            runs.append({})
        if runs:
            runs[-1][row["impl"]] = row
    return runs


def select_newest(rows: Iterable[Row], *key: str) -> list[Row]:
    """Return the last row of each combination of these columns."""
    return list({tuple(row[name] for name in key): row for row in rows}.values())


def ratio_of(runs: Sequence[Mapping[str, Row]], ours: str, peer: str, column: str) -> str:
    """Return a peer's value divided by ours, the median of the newest runs; "" if it has none."""
    ratios = [
        float(run[peer][column]) / float(run[ours][column]) for run in runs[-RUNS:] if peer in run
    ]
    return f"{statistics.median(ratios):.1f}" if ratios else ""


def compare_loaders(copies: Sequence[str]) -> list[Cells]:
    """Return the CPU times of loaders, divided by that of `exact`, one row a case."""
    ours = "fastdeit exact"
    rows = [row for row in read_rows("cpu-pipeline") if row["copies"] in copies]
    rows = [row for row in rows if row["stage"] == "+ RandomErasing = all"]
    peers = [peer for peer in dict.fromkeys(row["impl"] for row in rows) if peer != ours]
    cases = sorted({(row["data"], row["size"], row["copies"]) for row in rows})
    table = [["images", *peers]]
    for case in cases:
        of_case = [row for row in rows if (row["data"], row["size"], row["copies"]) == case]
        runs = split_runs(of_case, ours)
        name = f"{case[0]}, {case[1]} px, {case[2]} cop{'y' if case[2] == '1' else 'ies'}"
        table.append([name, *(ratio_of(runs, ours, peer, "cpu_ms") for peer in peers)])
    return table


def compare_evaluation() -> list[Cells]:
    """Return the CPU time of timm's validate.py for an image, divided by ours."""
    newest = select_newest(read_rows("cpu-evaluate"), "model", "impl")
    table = [["images and model", "timm's `validate.py` / `fastdeit evaluate`"]]
    return table + [
        [row["model"], f"{float(row['ratio']):.2f}"] for row in newest if row["impl"] == "fastdeit"
    ]


def compare_teachers() -> list[Cells]:
    """Return the speed with a teacher, in percent of that without."""
    rows = [row for row in read_rows("cpu-teacher") if row["speed_pct"]]
    runs = split_runs(rows, "no teacher")
    table = [["run", *(name for name in runs[-1] if name != "no teacher")]]
    for number, run in enumerate(runs, 1):
        shown = [f"{float(row['speed_pct']):.0f} %" for row in run.values()]
        table.append([f"{number}, {run['no teacher']['date']}", *shown[1:]])
    return table


def count_launches() -> list[Cells]:
    """Return the launches and waits of a step, in the first rows and in the newest."""
    key = ("precision", "zero_stage", "clip_grad", "accumulate")
    rows = read_rows("cpu-engine")
    first = {tuple(row[name] for name in key): row for row in reversed(rows)}
    table = [["form of the step", "launches", "reads by the host", "synchronisations"]]
    for row in select_newest(rows, *key):
        before = first[tuple(row[name] for name in key)]
        counts = [f"{before[name]} → {row[name]}" for name in ("launches", "reads")]
        waits = f"{before['synchronisations']} → {row['synchronisations']}"
        table.append([describe_form(row), *counts, waits])
    return table


def describe_form(row: Row) -> str:
    form = f"{row['precision']}, ZeRO {row['zero_stage']}"
    form += ", clipping" if row["clip_grad"] else ""
    return form + (f", {row['accumulate']} micro-batches" if row["accumulate"] != "1" else "")


def compare_exports() -> list[Cells]:
    """Return timm's time divided by that of each form of an exported model."""
    rows = select_newest(read_rows("cpu-export"), "model", "batch", "impl")
    forms = [form for form in dict.fromkeys(row["impl"] for row in rows) if form != "timm"]
    ratios = {(row["model"], row["batch"], row["impl"]): row["ratio"] for row in rows}
    table = [["model, batch", *forms]]
    for model, batch in dict.fromkeys((model, batch) for model, batch, _ in ratios):
        cells = [f"{float(ratios[model, batch, form]):.2f}" for form in forms]
        table.append([f"`{model}`, {batch}", *cells])
    return table


def compare_packed() -> list[Cells]:
    """Return CPU times of a packed data set, divided by those of its source."""
    table = [["packed", "reading and decoding the planned crop", "the whole `exact` path"]]
    for row in select_newest(read_rows("cpu-pack"), "packed", "size"):
        cells = [f"{row['packed']}, {row['size']} px", row["decode_ratio"], row["exact_ratio"]]
        table.append(cells)
    return table


def compare_windows() -> list[Cells]:
    """Return CPU times of a sample and bytes to the GPU, augmented on the CPU and by kernels."""
    columns = ("recipe", "cpu_ms", "gpu_ms", "ratio", "cpu_kb", "gpu_kb")
    table = [["recipe", "CPU ms a sample, cpu", "gpu", "ratio", "KB to the GPU, cpu", "gpu"]]
    rows = select_newest(read_rows("cpu-windows"), "recipe")
    return table + [[row[name] for name in columns] for row in rows]


def list_preparations() -> list[Cells]:
    """Return the core-hours of preparing a million images, one row a form."""
    rows = select_newest(read_rows("cpu-prepare"), "form", "work")
    works = list(dict.fromkeys(row["work"] for row in rows))
    hours = {(row["form"], row["work"]): row["core_hours_a_million"] for row in rows}
    forms = dict.fromkeys(row["form"] for row in rows)
    cells = [[form, *(hours.get((form, work), "") for work in works)] for form in forms]
    return [["core-hours a million images, from", *works], *cells]


def list_largest_batches() -> list[Cells]:
    """Return the largest micro-batch of each student on cards of several sizes."""
    heading = ["student", "checkpointing", "24 GB", "40 GB", "80 GB", "141 GB"]
    cards = ("gb_24", "gb_40", "gb_80", "gb_141")
    rows = [
        [
            f"`{row['student']}`",
            "yes" if row["checkpointing"] == "True" else "no",
            *(f"{int(row[card]):,}" for card in cards),
        ]
        for row in read_rows("memory-plan")
    ]
    return [heading, *rows]


def compare_forms(name: str, least: str) -> list[Cells]:
    """Return the speed of each form, divided by that of the form `least`, one row a shape."""
    rows = select_newest(read_rows(name), "shape", "impl")
    forms = [form for form in dict.fromkeys(row["impl"] for row in rows) if form != least]
    speeds = {(row["shape"], row["impl"]): row["speed"] for row in rows}
    table = [["model, images x side", *forms]]
    for shape in dict.fromkeys(row["shape"] for row in rows):
        table.append([f"`{shape}`", *(f"{float(speeds[shape, form]):.2f}" for form in forms)])
    return table


def _select_train(mode: str) -> dict[str, dict[str, Row]]:
    """Return the newest rows of bench_train by shape and implementation."""
    rows = [row for row in read_rows("cpu-x86-64") if row["bench"] == "train"]
    found: dict[str, dict[str, Row]] = {}
    for row in select_newest(rows, "mode", "shape", "impl"):
        if row["mode"] == mode:
            found.setdefault(row["shape"], {})[row["impl"]] = row
    return found


def compare_gaps() -> list[Cells]:
    """Return the wait of the training thread for a batch, and its CPU time for a step."""
    forms = ("read-ahead off", "read-ahead on")
    table = [["batch", *(f"wait, {form}" for form in forms)]]
    table[0] += ["CPU, no loader", *(f"CPU, {form}" for form in forms)]
    for batch, rows in _select_train("between steps").items():
        waits = [f"{float(rows[form]['ms_p50']):.2f} ms" for form in forms]
        spent = [f"{float(rows[form]['host_ms']):.2f} ms" for form in ("cached", *forms)]
        table.append([batch, *waits, *spent])
    return table


def compare_train_rates() -> list[Cells]:
    """Return the CPU time for a step: of the loader, of the step, and of both together."""
    forms = ("loader alone", "step alone", "both, read-ahead off", "both, read-ahead on")
    table = [["student, batch", *forms]]
    for shape, rows in _select_train("rate").items():
        table.append([shape, *(f"{float(rows[form]['host_ms']):.1f} ms" for form in forms)])
    return table


def estimate_scaling() -> list[Cells]:
    """Return the estimated share of the kernels in the time of a step, by student and number of
    GPUs."""
    rows = select_newest(read_rows("cpu-scaling"), "what", "student", "ranks")
    rows = [row for row in rows if row["what"] == "estimate"]
    students = list(dict.fromkeys(row["student"] for row in rows))
    table = [["GPUs", *students]]
    for ranks in dict.fromkeys(row["ranks"] for row in rows):
        of_ranks = {row["student"]: row for row in rows if row["ranks"] == ranks}
        cells = [show_shares(of_ranks[student]) for student in students]
        table.append([ranks, *cells])
    return table


def show_shares(row: Row) -> str:
    """Return the efficiency with the gradient reduced after, and during the backward pass."""
    shares = [float(row[name]) for name in ("efficiency", "hidden_efficiency")]
    return " → ".join(f"{100 * share:.0f} %" for share in shares)


TABLES: dict[str, Callable[[], list[Cells]]] = {
    "loaders": lambda: compare_loaders(["1", "2", "3"]),
    "loaders-2-copies": lambda: compare_loaders(["2"]),
    "evaluation": compare_evaluation,
    "teachers": compare_teachers,
    "step-counts": count_launches,
    "scaling": estimate_scaling,
    "launch": lambda: list_seconds(read_rows("cpu-launch")),
    "exports": compare_exports,
    "packed": compare_packed,
    "windows": compare_windows,
    "preparations": list_preparations,
    "largest-micro-batch": list_largest_batches,
    "compiled-steps": lambda: compare_forms("cpu-compile", "without a compiler"),
    "teacher-forms": lambda: compare_forms("cpu-teacher-forms", "as in the file"),
    "between-steps": compare_gaps,
    "train-rates": compare_train_rates,
    "official": lambda: compare_trainers(read_rows("cpu-official")),
    "rehearsal": lambda: list_stages(read_rows("cpu-rehearsal")),
    "ablation-conditions": lambda: arms.list_conditions(read_rows("cpu-ablation")),
    "ablation-distillation": lambda: arms.compare_distillation(read_rows("cpu-ablation")),
    "ablation-agreement": lambda: arms.list_agreement(read_rows("cpu-ablation")),
    "ablation-parts": lambda: arms.compare_parts(read_rows("cpu-ablation")),
}


def format_table(table: Sequence[Cells]) -> str:
    """Return a table in Markdown: its heading, then its rows."""
    heading, *rows = table
    lines = [heading, ["---"] * len(heading), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def fill_blocks(page: str) -> str:
    """Return a page with the tables that its blocks name. Raises KeyError for an unknown name."""
    return BLOCK.sub(lambda block: block[1] + format_table(TABLES[block[2]]()) + block[3], page)


def list_pages() -> Iterator[Path]:
    yield ROOT / "README.md"
    yield from sorted((ROOT / "docs").glob("*.md"))


def main() -> None:
    for page in list_pages():
        text = page.read_text(encoding="utf-8")
        filled = fill_blocks(text)
        if filled != text:
            page.write_text(filled, encoding="utf-8")
            print(page.relative_to(ROOT))


if __name__ == "__main__":
    main()
