"""Callbacks of the user: which names are accepted, and what one hears of a run."""

import sys
from pathlib import Path

import pytest

from fastdeit.config.cli import check_callbacks, parse_config
from fastdeit.config.parse import SettingError
from fastdeit.tracking.callbacks import Callback, load_callback

MODULE = """
import fastdeit

class Good(fastdeit.Callback):
    pass

class Other:
    pass

class Failing(fastdeit.Callback):
    def __init__(self):
        raise OSError("no room")

class Leaving(fastdeit.Callback):
    def __init__(self):
        raise SystemExit(3)

class Needy(fastdeit.Callback):
    def __init__(self, place):
        pass
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "own_watchers.py").write_text(MODULE)
    (tmp_path / "own_broken.py").write_text("import nowhere_at_all")
    (tmp_path / "own_leaving.py").write_text("raise SystemExit(3)")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_watchers", raising=False)
    return "own_watchers"


def test_a_class_is_made(module: str) -> None:
    assert isinstance(load_callback(f"{module}:Good"), Callback)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("own_watchers:Missing", "a class without arguments that extends fastdeit.Callback"),
        ("own_watchers:Other", "a class without arguments that extends fastdeit.Callback"),
        ("own_watchers:Failing", "this one raises OSError: no room"),
        ("own_watchers:Leaving", "this one raises SystemExit: 3"),
        ("own_watchers:Needy", "this one raises TypeError: .*place"),
        ("own_nothing:Good", "its import raises ModuleNotFoundError"),
        ("own_leaving:Good", "its import raises SystemExit: 3"),
        ("own_broken:Good", "its import raises ModuleNotFoundError: .*nowhere_at_all"),
    ],
)
def test_a_name_that_makes_none_is_a_mistake(module: str, name: str, reason: str) -> None:
    with pytest.raises(SettingError, match=rf"^--callback must be MODULE:CLASS.*{reason}"):
        load_callback(name)


def test_only_the_command_line_names_a_callback(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("tracking: {callback: ['a:B', 'c:D']}\n")
    argv = ["--config", str(file)]
    config, _ = parse_config(argv, "test")
    assert config.tracking.callback == ("a:B", "c:D")
    with pytest.raises(ValueError, match="'a:B' runs code; if you trust it, name it on the comm"):
        check_callbacks(config, argv)
    named = [*argv, "--callback", "a:B", "c:D"]
    check_callbacks(parse_config(named, "test")[0], named)


@pytest.mark.parametrize("name", ["own_watchers", ":Good", "own_watchers:"])
def test_a_name_without_a_class_is_refused_with_the_flags(name: str) -> None:
    with pytest.raises(ValueError, match=r"^--callback must be MODULE:CLASS \(got "):
        parse_config(["--callback", name], "test")
