"""Differences of runs: what each group shows, and what runs of older versions lack."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastdeit
from fastdeit.config.recipes import find_recipe
from fastdeit.report.comparison.settings import list_changes
from fastdeit.report.differences import Differences, compare_runs, name_runs
from fastdeit.report.record import RunRecord, read_run
from tests.report.test_record import ATTEMPT, PREDICTIONS
from tests.support.launching import ROOT

STEPS = {
    "step": np.arange(4.0),
    "loss": np.array([2.0, 1.0, np.nan, 0.5]),
    "base": np.array([2.0, 1.0, np.inf, 0.5]),
}


def make_record(name: str, lines: Any = (), **changes: Any) -> RunRecord:
    record = read_run(ROOT / "tests/support/older_log.jsonl")
    plain: dict[str, Any] = {"name": name, "lines": lines, "steps": STEPS, "evaluations": ()}
    plain |= {"settings": find_recipe("digits"), "recipe": "digits", "attempts": (ATTEMPT,)}
    return dataclasses.replace(record, **plain | changes)


def rows_of(found: Differences, title: str) -> dict[str, tuple[str, ...]]:
    return {row.name: row.values for row in found.group(title).rows}


def test_equal_runs_differ_in_nothing() -> None:
    lines = ({"step": 10, "digest": "aa", "images_per_s": 5.0},)
    found = compare_runs([make_record("a", lines), make_record("b", lines)])
    assert not [row.name for group in found.groups for row in group.rows if row.differs]
    assert rows_of(found, "samples")["other samples than the first run"] == (
        "",
        "none up to step 10",
    )
    assert rows_of(found, "losses")["first step with another loss"] == ("", "none")
    json.dumps(found.describe(), allow_nan=False)


def test_settings_show_what_differs_and_recipes_what_each_run_changed() -> None:
    digits = find_recipe("digits")
    other = digits.replace(optim={"epochs": 2, "clip_grad": None}, run={"output_dir": "elsewhere"})
    found = compare_runs([make_record("a"), make_record("b", settings=other)])
    assert rows_of(found, "settings") == {"--epochs": ("36", "2"), "--clip-grad": ("1.0", "none")}
    assert rows_of(found, "recipe") == {
        "recipe": ("digits", "digits"),
        "--epochs": ("", "2, recipe 36"),
        "--clip-grad": ("", "none, recipe 1.0"),
    }
    assert found.describe()["groups"]["settings"]["--epochs"] == [36, 2]


@pytest.mark.parametrize(
    "changes", [{"recipe": ""}, {"recipe": "of a later version"}, {"settings": None}]
)
def test_a_recipe_or_settings_that_are_unknown_change_nothing(changes: dict[str, Any]) -> None:
    assert list_changes(make_record("a", **changes)) == {}


def digests(**by_step: str) -> tuple[dict[str, Any], ...]:
    return tuple({"step": int(step[1:]), "digest": value} for step, value in by_step.items())


def test_samples_are_compared_at_the_last_step_of_all_and_from_the_first_line_that_differs() -> (
    None
):
    first = make_record("a", digests(s10="aa", s20="bb", s30="cc"))
    other = make_record("b", digests(s10="aa", s15="xx", s20="ff"))
    none = make_record("c", ({"step": 20, "loss": 1.0},))
    rows = rows_of(compare_runs([first, other, none]), "samples")
    assert rows["digest after step 20"] == ("bb", "ff", "")
    assert rows["other samples than the first run"] == ("", "from one of the steps 10 to 19 on", "")
    rows = rows_of(compare_runs([first, make_record("d", digests(s9="99", s10="xx"))]), "samples")
    assert rows["other samples than the first run"][1] == "from one of the steps 0 to 9 on"
    every = [make_record(name, digests(s1="11", s2=name)) for name in "ab"]
    rows = rows_of(compare_runs(every), "samples")
    assert rows["other samples than the first run"][1] == "from step 1 on"
    assert rows_of(compare_runs([none, none]), "samples") == {}


def test_losses_differ_from_the_first_step_whose_bits_do() -> None:
    base = STEPS["base"].copy()
    base[3] = np.nextafter(np.float32(0.5), np.float32(1))
    loss = np.array([2.0, 1.0, np.nan, 0.75])
    other = make_record("b", steps=STEPS | {"base": base, "loss": loss})
    rows = rows_of(compare_runs([make_record("a"), other]), "losses")
    assert rows["first step with another loss"] == ("", "3")
    assert rows["largest difference of the loss"] == ("", "0.25")
    shifted = make_record("c", steps={name: values[:2] for name, values in STEPS.items()})
    assert rows_of(compare_runs([shifted, other]), "losses")["steps in both logs"] == ("", "2")
    assert rows_of(compare_runs([shifted, make_record("d", steps={})]), "losses") == {}


def test_results_have_their_distance_and_whether_it_is_chance() -> None:
    summaries = [
        {"results": {"model/both/top1": top1, "model/both/top5": 90.0}} for top1 in (50, 75)
    ]
    answers = {"model/both": np.array([1, 0], np.int32)}
    better = dataclasses.replace(PREDICTIONS, answers=answers)
    first = make_record("a", summary=summaries[0], predictions=PREDICTIONS)
    other = make_record("b", summary=summaries[1], predictions=better)
    found = compare_runs([first, other, make_record("c")])
    rows = rows_of(found, "results")
    assert rows["model/both/top1"] == ("50.00", "75.00 (+25.00)", "")
    assert rows["model/both: by chance?"] == ("", "p = 1 (0 against 1 images)", "")
    assert rows["state"] == ("finished", "finished", "not finished")
    assert list(rows).index("model/both/top1") < list(rows).index("model/both/top5")
    assert found.describe()["tests"][1][0]["only_other"] == 1


def test_inputs_are_shown_by_short_hashes_and_absent_ones_named() -> None:
    teacher = {"name": "resnet10t", "weights": ["a" * 64, "b" * 64]}
    inputs = {"teacher": teacher, "finetune": None, "samples": {"plan": 3}}
    rows = rows_of(compare_runs([make_record("a", inputs=inputs), make_record("b")]), "inputs")
    assert rows["teacher's weights"] == (f"{'a' * 12}, {'b' * 12}", "")
    assert rows["--finetune"] == ("none", "") and "initial weights" not in rows


def test_speed_is_the_median_and_memory_the_peak() -> None:
    lines: list[dict[str, Any]]
    lines = [{"step": n, "images_per_s": rate, "memory_gb": n} for n, rate in enumerate((1, 9, 5))]
    lines += [{"step": 9, "images_per_s": "nan", "mfu": None}]
    rows = rows_of(compare_runs([make_record("a", tuple(lines))]), "speed")
    assert rows == {"images/s": ("5",), "peak memory, GB": ("2.00",)}


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["runs/a", "runs/b"], ("a", "b")),
        (["x/runs/a", "y/runs/a"], ("x/runs/a", "y/runs/a")),
        (["a", "x/a"], ("a", "x/a")),
        (["a", "a"], ("a", "a")),
        (["."], (".",)),
    ],
)
def test_runs_have_the_shortest_names_that_distinguish_them(
    paths: list[str], names: tuple[str, ...]
) -> None:
    assert name_runs([str(Path(path)) for path in paths]) == names


def test_the_library_compares_folders() -> None:
    log = ROOT / "tests/support/older_log.jsonl"
    found = fastdeit.compare_runs([log, str(log)])
    assert found["groups"]["results"]["steps"] == [11244, 11244]
    with pytest.raises(ValueError, match="^RUN must be"):
        fastdeit.compare_runs([log, "nowhere"])
    with pytest.raises(ValueError, match="^runs must be at least one"):
        fastdeit.compare_runs([])
