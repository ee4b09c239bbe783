"""Settings that may change: each is a field, of one kind, and in docs/resume.md."""

import dataclasses
import re
from pathlib import Path

import pytest
import yaml

from fastdeit.config.changes import (
    FORM,
    LATER,
    MAY_CHANGE_ON_RESUME,
    MAY_CHANGE_WHEN_FINISHED,
    SOURCES,
    find_paths,
    list_changes,
    list_values,
    pick_settings,
    read_settings,
)
from fastdeit.config.parse import name_flag
from fastdeit.config.schema import Config
from tests.support.launching import ROOT

KINDS = {"form": FORM, "source": SOURCES, "later": LATER}


def test_every_kind_holds_fields_of_its_own() -> None:
    assert frozenset(list_values(Config())) >= MAY_CHANGE_ON_RESUME
    assert sum(map(len, KINDS.values())) == len(MAY_CHANGE_ON_RESUME)
    assert MAY_CHANGE_WHEN_FINISHED < MAY_CHANGE_ON_RESUME


def test_no_two_sections_share_a_field() -> None:
    count = sum(
        len(dataclasses.fields(getattr(Config(), section.name)))
        for section in dataclasses.fields(Config)
    )
    assert count == len(list_values(Config()))


@pytest.mark.parametrize("kind", KINDS)
def test_the_table_of_the_docs_names_each_flag_that_may_change(kind: str) -> None:
    text = (ROOT / "docs" / "resume.md").read_text()
    row = next(line for line in text.splitlines() if line.startswith(f"| {kind} |"))
    flags = set(re.findall(r"`(--[a-z-]+)`", row.split("|")[2]))
    assert flags == {name_flag(name) for name in KINDS[kind]}


def test_paths_are_the_same_from_another_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    then = Config().replace(data={"data_path": "data"}, run={"output_dir": "./runs/a"})
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path / "runs")
    for data, folder, same in (
        ("../data", "a", True),
        (f"{tmp_path}/data", f"{tmp_path}/runs/a", True),
        ("data", "a", True),
        ("../other", "a", False),
        ("../data", "b", False),
    ):
        now = Config().replace(data={"data_path": data}, run={"output_dir": folder})
        assert (list_changes(then, now, FORM) == []) == same, (data, folder)


def test_paths_of_the_working_directory_of_the_run_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    then = Config().replace(data={"data_path": "data"}, run={"output_dir": "runs/a"})
    for folder in ("data", "runs/a", "elsewhere/data"):
        (tmp_path / folder).mkdir(parents=True)
    now = then.replace(run={"output_dir": f"{tmp_path}/runs/a"}, distill={"teacher_path": "none"})
    for work, found in (("runs", f"{tmp_path}/data"), ("", "data"), ("elsewhere", "data")):
        monkeypatch.chdir(tmp_path / work)
        assert find_paths(then, now) == now.replace(data={"data_path": found})


def test_what_decides_samples_or_maths_is_fixed() -> None:
    fixed = {"seed", "lr", "batch_size", "aa", "model", "input_size", "precision"}
    assert not fixed & MAY_CHANGE_ON_RESUME
    results = {"data_path", "eval_input_size", "eval_crop_ratio", "teacher_path", "cache"}
    assert not results & MAY_CHANGE_WHEN_FINISHED


def test_changes_are_named_by_flag_with_both_values(tmp_path: Path) -> None:
    then = Config().replace(data={"data_path": f"{tmp_path}/a"}, optim={"lr": 0.1})
    now = then.replace(data={"data_path": f"{tmp_path}/x/../a"}, run={"log_steps": 3})
    assert list_changes(then, now, FORM) == []
    assert list_changes(then, now, frozenset()) == ["--log-steps was 10, now 3"]
    other = now.replace(data={"data_path": ""}, optim={"lr": 0.2})
    assert list_changes(then, other, FORM) == [
        f"--data-path was '{tmp_path}/a', now ''",
        "--lr was 0.1, now 0.2",
    ]


def test_a_run_folder_and_its_weights_are_the_same_teacher(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    then, now = (
        Config().replace(distill={"teacher_path": str(path)}, model={"finetune": str(path)})
        for path in (tmp_path, tmp_path / "model.safetensors")
    )
    assert list_changes(then, now, frozenset()) == []


def test_a_long_address_of_weights_is_compared_as_it_is() -> None:
    address = f"https://me/{'0' * 5000}.pth"
    run = Config().replace(model={"finetune": address})
    assert list_changes(run, run, frozenset()) == []
    assert find_paths(run, run) == run
    (line,) = list_changes(run, run.replace(model={"finetune": address + "1"}), frozenset())
    assert line.startswith("--finetune was")


def test_a_field_that_an_older_file_lacks_has_its_default(tmp_path: Path) -> None:
    sections = Config().replace(run={"seed": 3}).to_dict()
    del sections["optim"]["clip_grad"], sections["limits"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(sections))
    assert (
        read_settings(tmp_path / "config.yaml", "--output-dir").to_dict()
        == Config().replace(run={"seed": 3}).to_dict()
    )


def test_settings_are_picked_by_section() -> None:
    picked = pick_settings(Config(), {"seed", "cache"})
    assert {name: part for name, part in picked.items() if part} == {
        "run": {"seed": 0},
        "distill": {"cache": ""},
    }
