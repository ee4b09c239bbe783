"""The tables of the ablation, in the paper's form (arXiv 2012.12877)."""

import statistics
from collections.abc import Sequence

from benchmarks.arms.comparisons import Row, Score, judge, measure_effect, select_runs
from benchmarks.measuring.harness import show_spread

BASE = Score("none", "base", 72.2)
HARD = Score("hard, without the token", "hard", 74.3)
BOTH = Score("token: both heads", "token", 74.5)
CLASS_HEAD = Score("token: class head", "token", 73.9, head="cls")
DISTILLATION_HEAD = Score("token: distillation head", "token", 74.6, head="dist")
DISTILLATION = [
    (BASE, None),
    (Score("soft", "soft", 72.2), BASE),
    (HARD, BASE),
    (CLASS_HEAD, BASE),
    (DISTILLATION_HEAD, BASE),
    (BOTH, BASE),
    (BOTH, HARD),
    (DISTILLATION_HEAD, CLASS_HEAD),
]
"""The rows of table 3, DeiT-Ti; then those of the token's effect, and of its two heads."""
WHOLE = Score("base", "base", 81.8)
PARTS = [
    (WHOLE, None),
    *(
        (Score(arm.replace("no ", "− "), arm, paper), WHOLE)
        for arm, paper in (
            ("no RandAugment", 79.6),
            ("no Mixup", 78.7),
            ("no CutMix", 80.0),
            ("no Mixup, no CutMix", 75.8),
            ("no erasing", 4.3),
            ("no DropPath", 3.4),
            ("no repeats", 76.5),
        )
    ),
    (Score("+ EMA", "base", 81.9, weights="ema"), WHOLE),
]
"""The rows of table 8, DeiT-B at 224 px; without erasing or DropPath, the paper's runs failed."""
Cells = list[str]


def compare_distillation(rows: Sequence[Row]) -> list[Cells]:
    """Return the rows of the paper's table 3, with our runs."""
    return _compare(rows, DISTILLATION, "paper, DeiT-Ti")


def compare_parts(rows: Sequence[Row]) -> list[Cells]:
    """Return the rows of the paper's table 8, with our runs."""
    return _compare(rows, PARTS, "paper, DeiT-B")


def _compare(
    rows: Sequence[Row], lines: Sequence[tuple[Score, Score | None]], paper: str
) -> list[Cells]:
    """Return a row for each score that has runs: the score, its difference to a reference, and the
    paper's figures; paper: the title of their column."""
    rows = select_runs(rows)
    heading = ["training", "top-1, %", "runs", "against", "difference", "p", paper]
    table = [[*heading, "the paper's difference", "this scale"]]
    for score, reference in lines:
        found = score.read(rows)
        if found and (reference is None or reference.read(rows)):
            table.append(_list_cells(rows, score, reference))
    return table


def _list_cells(rows: Sequence[Row], score: Score, reference: Score | None) -> Cells:
    found = list(score.read(rows).values())
    cells = [score.title, show_spread(found), str(len(found))]
    if reference is None:
        return [*cells, "", "", "", f"{score.paper:.1f}", "", ""]
    effect = measure_effect(score.read(rows), reference.read(rows))
    paper = score.paper - reference.paper
    error = f" ± {effect.error:.2f}" if effect.seeds > 1 else ""
    p = f"{effect.p:.2g}" if effect.seeds > 1 else ""
    cells += [reference.title, f"{effect.mean:+.2f}{error}", p, f"{score.paper:.1f}"]
    return [*cells, f"{paper:+.1f}", judge(effect, round(paper, 1))]


def list_conditions(rows: Sequence[Row]) -> list[Cells]:
    """Return the rows on the conditions that all runs share, and on their cost."""
    rows = select_runs(rows)
    newest = rows[-1]
    costs = {(row["arm"], row["seed"]): float(row["cpu_s"]) for row in rows}
    steps = f"{int(newest['steps']):,} of {newest['batch']} samples, {newest['epochs']} epochs"
    versions = ", ".join(f"{name} {newest[name]}" for name in ("torch", "deepspeed"))
    facts = {
        "data": newest["data"],
        "student": f"`{newest['student']}`: model, patch, width, blocks, heads",
        "teacher's top-1": f"{newest['teacher_top1'] or 'unknown'} %",
        "steps of every run": steps,
        "runs": f"{len(costs)}, of {len({row['seed'] for row in rows})} seeds",
        "CPU time of a run": f"{statistics.median(costs.values()):.0f} s, the median",
        "CPU time of all": f"{sum(costs.values()) / 60:.0f} min",
        "processor": newest["cpu"],
        "versions": f"{versions}; fastdeit {newest['commit']}",
    }
    return [["", "all runs"], *([name, value] for name, value in facts.items())]


def list_agreement(rows: Sequence[Row]) -> list[Cells]:
    """Return the percent of the validation images on which each head and the teacher agree, beside
    that of the paper (its table 4)."""
    rows = select_runs(rows)
    table = [["answers of", "agreement with the teacher, %", "runs", "paper, DeiT-B"]]
    papers = {"base": 86.7, "cls": 88.8, "dist": 90.0, "both": 89.8}
    for score in (BASE, CLASS_HEAD, DISTILLATION_HEAD, BOTH):
        wanted = (score.arm, score.head, "model")
        found = [row for row in rows if (row["arm"], row["head"], row["weights"]) == wanted]
        values = [float(row["agreement"]) for row in found if row["agreement"]]
        paper = papers[score.arm if score is BASE else score.head]
        if values:
            table.append([score.title, show_spread(values), str(len(values)), f"{paper:.1f}"])
    return table
