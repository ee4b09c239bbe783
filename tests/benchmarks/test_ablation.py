"""The ablation: its arms differ in what they name, its runs resume and read the teacher's records,
its tables say what the rows say.

python -m pytest tests/benchmarks/test_ablation.py
"""

import csv
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks import ablation
from benchmarks.arms import settings, tables
from benchmarks.arms.comparisons import Effect, Score, judge, measure_effect, select_runs
from benchmarks.arms.curves import average_curve, draw_curves
from benchmarks.arms.scores import has_rows
from benchmarks.arms.settings import ARMS, find_config, list_changes, list_flags, name_run
from benchmarks.measuring.harness import Row, write_rows
from fastdeit.commands.cache.command import cache_command
from fastdeit.commands.runs.train import train_command
from fastdeit.report.record import read_run
from tests.support.images import write_shapes

NAMED = {
    "base": "",
    "token": "model=deit_tiny_distilled_patch16_224; distillation_type=hard",
    "hard": "distillation_type=hard",
    "soft": "distillation_type=soft",
    "no RandAugment": "aa=none",
    "no Mixup": "mixup=0.0",
    "no CutMix": "cutmix=0.0",
    "no Mixup, no CutMix": "mixup=0.0; cutmix=0.0",
    "no erasing": "reprob=0.0",
    "no DropPath": "drop_path=0.0",
    "no repeats": "repeated_aug=False",
}
SMALL = (
    "--depth 2 --embed-dim 16 --num-heads 2 --epochs 2 --warmup-epochs 0 --batch-size 12 "
    "--log-steps 1"
).split()
COMMANDS = {"train": train_command, "cache": cache_command}


@pytest.mark.parametrize("flags", ["", "--recipe deit --data-path IMAGENET"])
def test_each_arm_changes_what_it_names_and_nothing_else(flags: str) -> None:
    base = find_config("base", flags.split())
    changes = {arm: list_changes(find_config(arm, flags.split()), base) for arm in ARMS}
    wanted = NAMED["token"].replace("tiny", "small" if flags else "tiny")
    assert changes == NAMED | {"token": wanted}
    assert base.distill.distillation_type == "none" and "distilled" not in base.model.model


@pytest.mark.parametrize(
    ("seeds", "flags", "error"),
    [
        (0, "", "--seeds must be 1 or more"),
        (3, "--seed 1", "--seed is set for each run"),
        (3, "--output-dir=x", "--output-dir is set for each run"),
        (3, "--epoch", "--epoch is not a flag"),
    ],
)
def test_a_flag_that_no_arm_can_have_is_refused(seeds: int, flags: str, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        ablation.check_flags(seeds, flags.split())


def test_teacher_of_the_user_is_not_replaced(tmp_path: Path) -> None:
    for flags in (["--teacher-path=t"], ["--recipe", "deit", "--teacher-path", "t"]):
        assert ablation.find_teacher(tmp_path, flags, "false") == []
        assert find_config("base", flags).distill.teacher_path == "t"


class Starter:
    """`ablation.start` in this process; `stop` ends the next training of this run after a step."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.stop = ""

    def __call__(self, words: Sequence[str], launcher: str) -> None:
        command, *argv = words
        flag = "--output-dir" if command == "train" else "--output"
        name = Path(argv[argv.index(flag) + 1]).name
        self.started.append(name)
        stops = ["--stop-after-steps", "1"] if name == self.stop else []
        self.stop = "" if stops else self.stop
        assert COMMANDS[command]([*argv, *stops]) == 0


def list_losses(run: Path) -> list[float]:
    return list(read_run(run).steps["loss"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "taught", [("token",), pytest.param(("token", "hard", "soft"), marks=pytest.mark.slow)]
)
def test_stopped_ablation_resumes_and_equals_live_distillation(
    taught: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = Starter()
    monkeypatch.setattr(ablation, "start", start)
    monkeypatch.setattr(ablation, "ARMS", {arm: ARMS[arm] for arm in ("base", *taught)})
    monkeypatch.setattr(ablation, "CACHED", taught)
    monkeypatch.setattr(ablation, "TEACHER", [*settings.TEACHER, "--epochs", "1", *SMALL[-4:]])
    data = write_shapes(tmp_path / "data", train=8)
    flags = ["--data-path", str(data), *SMALL]
    command = ["--folder", str(tmp_path), "--out", str(tmp_path), "--seeds", "1", *flags]

    start.stop = "token-0"
    with pytest.raises(SystemExit, match="token-0 stopped before its end"):
        ablation.main(command)
    ablation.main(command)
    resumed = ["cache-0", *(f"{arm}-0" for arm in taught)]
    assert start.started == ["teacher", "cache-0", "base-0", "token-0", *resumed]
    ablation.main(command)
    assert len(start.started) == 4 + len(resumed), "finished runs are not repeated"

    rows = read(tmp_path / "cpu-ablation.csv")
    heads = {arm: ["both"] for arm in taught} | {"token": ["cls", "dist", "both"]}
    scored = sorted((arm, head) for arm in heads for head in heads[arm])
    found = [(row["arm"], row["head"]) for row in rows if row["weights"] == "ema"]
    assert sorted(found) == sorted([("base", "both"), *scored]) and len(rows) == 2 * len(found)
    assert all(0 <= float(row["agreement"]) <= 100 for row in rows)
    summary = read_run(tmp_path / "teacher").summary
    assert summary is not None
    taught_by = str(summary["results"]["model/both/top1"])
    assert {row["teacher_top1"] for row in rows} == {taught_by}
    assert {row["steps"] for row in rows} == {"4"}
    for arm in taught:
        check_equals_live(tmp_path, arm, flags)


def check_equals_live(folder: Path, arm: str, flags: Sequence[str]) -> None:
    """Train an arm with the live teacher and compare its losses; those of a soft teacher are
    recorded as fp16."""
    live = ["--seed", "0", "--teacher-path", str(folder / "teacher")]
    live += ["--output-dir", str(folder / "live")]
    assert train_command([*list_flags(arm, flags), *live]) == 0
    wanted = list_losses(folder / "live")
    shutil.rmtree(folder / "live")
    assert len(wanted) == 4
    tolerance = 1e-4 if arm == "soft" else 0
    assert list_losses(name_run(folder, arm, 0)) == pytest.approx(wanted, rel=tolerance, abs=0)


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_difference_and_its_error_are_those_of_the_pairs() -> None:
    effect = measure_effect({0: 81.0, 1: 84.0, 2: 86.0, 9: 0.0}, {0: 80.0, 1: 82.0, 2: 83.0})
    # 1, 2, 3: mean 2, deviation 1, t = 2 * sqrt(3), 2 degrees of freedom: p = 1 - t / sqrt(2 + t²)
    assert (effect.mean, effect.seeds) == (2, 3)
    assert effect.error == pytest.approx(1 / math.sqrt(3))
    assert effect.p == pytest.approx(1 - math.sqrt(12 / 14))
    assert measure_effect({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0}).p == 1
    assert measure_effect({0: 2.0, 1: 3.0}, {0: 1.0, 1: 2.0}).p == 0
    with pytest.raises(ValueError, match="no seed"):
        measure_effect({0: 1.0}, {1: 1.0})


@pytest.mark.parametrize(
    ("mean", "p", "paper", "words"),
    [
        (-1, 0.04, -3.1, "shows it"),
        (1, 0.04, -3.1, "shows the opposite"),
        (-1, 0.05, -3.1, "does not show it"),
        (-1, 0.05, 0.1, "none seen, as in the paper"),
        (1, 0.04, 0.2, "a difference, where the paper has none"),
    ],
)
def test_verdict_follows_from_sign_and_p(mean: float, p: float, paper: float, words: str) -> None:
    assert judge(Effect(mean, 0.1, p, 3), paper) == words
    assert judge(Effect(mean, math.nan, math.nan, 1), paper) == "one seed: not tested"


SAME = {"data": "d", "student": "s", "batch": "8", "epochs": "1", "steps": "4"}


def make_rows(arm: str, *top1: float, **changed: Any) -> list[dict[str, str]]:
    same = SAME | {"weights": "model", "head": "both", "agreement": "", "arm": arm} | changed
    return [same | {"seed": str(seed), "top1": str(score)} for seed, score in enumerate(top1)]


def test_table_has_the_runs_of_the_newest_conditions() -> None:
    older = make_rows("base", 10, steps="2") + make_rows("hard", 10, steps="2")
    rows = [*older, *make_rows("base", 80, 82, 83), *make_rows("hard", 81, 84, 86)]
    heading, base, hard = tables.compare_distillation(rows)
    assert base[:3] == ["none", "81.67 ± 1.53", "3"] and len(base) == len(heading)
    assert hard[:6] == ["hard, without the token", "83.67 ± 2.52", "3", "none", *hard[4:6]]
    assert hard[4:] == ["+2.00 ± 0.58", "0.074", "74.3", "+2.1", "does not show it"]


def test_every_arm_is_in_a_table() -> None:
    lines = [*tables.DISTILLATION, *tables.PARTS]
    assert {score.arm for score, _ in lines} == set(ARMS)
    assert Score("", "base", 0.0).read(make_rows("base", 1, 2, weights="ema")) == {}


def test_runs_of_other_conditions_have_rows_of_their_own(tmp_path: Path) -> None:
    run: Row = {**SAME, "arm": "base", "seed": 0}
    assert not has_rows(tmp_path / "rows.csv", run)
    write_rows(tmp_path / "rows.csv", [run], list(run))
    assert has_rows(tmp_path / "rows.csv", run)
    for name in ("steps", "seed", "arm", "data"):
        assert not has_rows(tmp_path / "rows.csv", {**run, name: "other"})


def test_curve_is_the_mean_over_seeds(tmp_path: Path) -> None:
    rows = [
        SAME | {"arm": "base", "seed": seed, "weights": "model", "step": step, "top1": top1}
        for seed, step, top1 in (("0", "9", "50"), ("1", "9", "60"), ("0", "3", "20"))
    ]
    rows.append(rows[0])  # written twice by a stop
    assert average_curve(select_runs(rows), "base", "model") == {3: 20, 9: 55}
    draw_curves(rows, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 0
