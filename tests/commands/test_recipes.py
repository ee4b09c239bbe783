"""`fastdeit recipes`: list, show and diff, and README's table of recipes."""

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from fastdeit.commands.recipes import recipes_command
from fastdeit.config.changes import read_settings
from fastdeit.config.cli import parse_config
from fastdeit.config.recipes import RECIPES
from fastdeit.config.schema import Config
from fastdeit.storage.run_folder import RunFolder
from tests.support.launching import ROOT

Captured = pytest.CaptureFixture[str]


def test_the_list_has_every_recipe_in_its_order(capsys: Captured) -> None:
    for argv in ([], ["list"]):
        assert recipes_command(argv) == 0
        said = capsys.readouterr().out
        assert re.findall(r"^│ (\w+) ", said, re.MULTILINE) == list(RECIPES)
    assert recipes_command(["--json"]) == 0
    described = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in described] == list(RECIPES)
    assert all(30 < len(one["description"]) < 300 for one in described)


@pytest.mark.parametrize("name", RECIPES)
def test_what_is_shown_is_the_file_of_the_recipe(
    name: str, tmp_path: Path, capsys: Captured
) -> None:
    assert recipes_command(["show", name.replace("_", "-")]) == 0
    path = tmp_path / "recipe.yaml"
    path.write_text(capsys.readouterr().out)
    assert read_settings(path, "test") == RECIPES[name]()


def test_what_is_shown_explains_every_field(capsys: Captured) -> None:
    assert recipes_command(["show", "digits"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        "# A small distilled DeiT on scikit-learn's handwritten digits, written out as image files."
    )
    assert (
        "# plan: resized_crop(0.75-1,ratio0.85-1.18)|randaug(1,m3,std0.5)|normalise|"
        in "\n".join(lines)
    )
    fields = [number for number, line in enumerate(lines) if re.match(r"  \w+:", line)]
    assert len(fields) == sum(len(part) for part in Config().to_dict().values())
    assert all(lines[number - 1].startswith("  # ") for number in fields)
    assert lines[fields[0] - 1] == "  # then it is fetched first."


def test_what_flags_change_is_shown(tmp_path: Path, capsys: Captured) -> None:
    argv = ["--lr", "1e-3", "--aa", "none"]
    assert recipes_command(["show", "digits", *argv]) == 0
    path = tmp_path / "recipe.yaml"
    path.write_text(capsys.readouterr().out)
    assert "# With --lr 1e-3 --aa none\n" in path.read_text()
    assert read_settings(path, "test") == parse_config(["--recipe", "digits", *argv], "test")[0]
    assert recipes_command(["show", "digits", "--json", *argv]) == 0
    described = json.loads(capsys.readouterr().out)
    assert described["settings"]["optim"]["lr"] == 1e-3 and "randaug" not in described["plan"]


def test_the_settings_are_json_too(capsys: Captured) -> None:
    assert recipes_command(["show", "digits", "--json"]) == 0
    described = json.loads(capsys.readouterr().out)
    assert list(described) == ["name", "description", "plan", "settings"]
    assert described["settings"] == RECIPES["digits"]().to_dict()


@pytest.mark.parametrize("name", ["deit-paper", "deit3", "digits_48"])
def test_the_flags_of_a_difference_lead_from_one_to_the_other(name: str, capsys: Captured) -> None:
    assert recipes_command(["diff", "deit", name, "--json"]) == 0
    described = json.loads(capsys.readouterr().out)
    flags = [word for row in described["differences"] for word in shlex.split(row["flag"])]
    config, _ = parse_config(flags, "test")
    assert config.replace(run={"output_dir": ""}) == RECIPES[name.replace("-", "_")]()
    assert described["plans"][0].startswith("repeat(2)|resized_crop(0.08-1)")


def test_a_run_is_compared_with_its_recipe(tmp_path: Path, capsys: Captured) -> None:
    config = RECIPES["digits"]().replace(optim={"lr": 1e-3}, augment={"hflip": 0.5})
    RunFolder(tmp_path).config.write_text(yaml.safe_dump(config.to_dict()))
    assert recipes_command(["diff", "digits", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert f"from digits to {tmp_path}:  --hflip 0.5 --lr 0.001\n" in said
    assert said.count("plan of ") == 2
    assert recipes_command(["diff", str(RunFolder(tmp_path).config), str(tmp_path)]) == 0
    assert "have the same settings" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "error"),
    [
        (
            "shw",
            "recipes must be list, show NAME [FLAGS], or diff NAME NAME|RUN (got 'shw')",
        ),
        (
            "show",
            "recipes must be list, show NAME [FLAGS], or diff NAME NAME|RUN (got 'show')",
        ),
        ("show nothing", "--recipe must be one of deit, deit_paper"),
        (
            "diff deit",
            "recipes must be list, show NAME [FLAGS], or diff NAME NAME|RUN (got 'diff deit')",
        ),
        ("diff deit nothing", "recipes diff must be a recipe (fastdeit recipes lists them), a run"),
        ("diff deit .", "a run folder or a settings file (got '.')"),
        ("list --lr 1", "or diff NAME NAME|RUN (got 'list --lr 1')"),
        ("show digits --colour", "--colour is not a flag"),
        ("show digits --lr 0", "--lr must be above 0 (got 0.0)"),
    ],
)
def test_a_mistake_is_one_line(
    argv: str, error: str, capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_info:
        recipes_command(argv.split())
    said = capsys.readouterr()
    assert exit_info.value.code == 2 and said.out == ""
    assert error in said.err and said.err.count("\n") == 1


def test_readme_has_every_recipe_in_the_same_order() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text.partition("| `--recipe` |")[2].partition("\n\n")[0]
    cells = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    assert re.findall(r"`(\w+)`", " ".join(cells)) == list(RECIPES)
