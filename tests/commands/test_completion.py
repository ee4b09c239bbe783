"""`fastdeit completion`: what real shells propose, the flags that it knows, and mistakes."""

from pathlib import Path
from typing import Any

import pytest

from fastdeit.__main__ import COMMANDS
from fastdeit.commands.completion import completion_command, write_script
from fastdeit.commands.parsers import PARSERS, TRAINS
from fastdeit.config.flags import own_flags
from fastdeit.config.options import _list_fields, _list_flags
from tests.support.shells import complete

SUMMARIES = {name: command.__doc__ or "" for name, command in COMMANDS.items()}
OPTIONS: dict[str, Any] = {
    name: source for name, source in PARSERS.items() if isinstance(source, type)
}
HIDDEN = {"-h", "--local-rank", "--no-help"}
# what is typed, what must be proposed, and what must not
TYPED = (
    ("fastdeit ", {"train", "cache", "completion"}, {"--recipe", "build"}),
    ("fastdeit train --recipe ", {"deit", "digits"}, {"--recipe=", "photos"}),
    ("fastdeit cache build --no-model", {"--no-model-ema"}, {"--model"}),
    ("fastdeit recipes show di", {"digits", "digits_48"}, {"deit"}),
    ("fastdeit replay ", {"photos/"}, {"a.jpg"}),
    ("fastdeit evaluate --ema --data-path ", {"a.jpg", "photos/"}, {"auto"}),
    ("fastdeit evaluate photos --precision ", {"bf16", "fp32"}, {"a.jpg"}),
)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a folder with the scripts, and one with a file and a folder."""
    scripts = tmp_path_factory.mktemp("scripts")
    folder = tmp_path_factory.mktemp("work")
    (folder / "photos").mkdir()
    (folder / "a.jpg").touch()
    for shell in ("bash", "zsh", "fish"):
        (scripts / shell).write_text(write_script(shell, SUMMARIES))
    return scripts, folder


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shell_proposes_commands_flags_choices_and_files(
    shell: str, places: tuple[Path, Path]
) -> None:
    scripts, folder = places
    found = complete(shell, scripts / shell, [line for line, _, _ in TYPED], folder)
    for (line, wanted, unwanted), words in zip(TYPED, found, strict=True):
        proposed = {word + "/" if word == "photos" else word for word in words - set(line.split())}
        assert proposed >= wanted, line
        assert not proposed & unwanted, line


def test_shell_completes_every_command(places: tuple[Path, Path]) -> None:
    scripts, folder = places
    lines = [f"fastdeit {name} --" for name in PARSERS]
    for line, words in zip(lines, complete("bash", scripts / "bash", lines, folder), strict=True):
        assert "--help" in words, line


def test_flags_of_every_command_are_named() -> None:
    assert {name.split()[0] for name in PARSERS} == set(COMMANDS)


@pytest.mark.parametrize("name", OPTIONS)
def test_flags_are_those_that_the_command_accepts(name: str, places: tuple[Path, Path]) -> None:
    scripts, folder = places
    (words,) = complete("bash", scripts / "bash", [f"fastdeit {name} --"], folder)
    own = {flag for flag in _list_flags(list(_list_fields(OPTIONS[name]))) if flag.startswith("--")}
    assert words >= own - HIDDEN and (words == own - HIDDEN or name in TRAINS)


@pytest.mark.parametrize("name", ["train", *TRAINS])
def test_flags_of_train_are_among_those(name: str, places: tuple[Path, Path]) -> None:
    scripts, folder = places
    (words,) = complete("bash", scripts / "bash", [f"fastdeit {name} --"], folder)
    assert words >= set(own_flags()) - HIDDEN


def test_command_prints_the_script_as_it_is(
    places: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert completion_command(["zsh"], SUMMARIES) == 0
    assert capsys.readouterr().out == (places[0] / "zsh").read_text() + "\n"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["csh"], "SHELL must be bash, zsh or fish (got 'csh')"),
        ([], "SHELL must be given"),
        (["bash", "zsh"], "'zsh' belongs to no flag"),
        (["bash", "--install"], "--install is not a flag"),
    ],
    ids=["unknown", "none", "two", "flag"],
)
def test_mistake_is_one_line(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        completion_command(argv, SUMMARIES)
    printed = capsys.readouterr()
    assert ended.value.code == 2
    assert message in printed.err and printed.err.count("\n") == 1 and not printed.out
