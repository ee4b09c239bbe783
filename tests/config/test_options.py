"""The flags of commands other than `train`, from a dataclass."""

import dataclasses
from typing import Literal

import pytest
import tyro

from fastdeit.config.options import make_parser, parse_options
from fastdeit.config.parse import Section


@dataclasses.dataclass(frozen=True)
class Size(Section):
    batch_size: int = 256
    """Images in a batch."""
    mean: tuple[float, float, float] | None = None
    """Mean of each channel."""

    def check(self) -> None:
        self._require("batch_size", self.batch_size > 0, "1 or more")


@dataclasses.dataclass(frozen=True)
class Look:
    images: tyro.conf.Positional[tuple[str, ...]]
    """Images."""
    checkpoint: str
    """Weights."""
    size: Size = dataclasses.field(default_factory=Size)
    json: bool = False
    """As JSON."""
    kind: Literal["a", "b"] = "a"
    """Of the two."""


def parse(*argv: str) -> Look:
    return parse_options(argv, Look, "fastdeit look", "Look.")


@dataclasses.dataclass(frozen=True)
class Glance(Look):
    form: Literal["long", "short"] | None = None
    """Its length."""
    beside: tyro.conf.Positional[str] = ""
    """Another image."""


def test_parser_describes_inherited_flags_sections_and_places() -> None:
    found = {action.dest: action for action in make_parser(Glance)._actions}
    counts = {"images": "+", "checkpoint": None, "batch_size": None, "mean": 3, "json": 0}
    assert {name: found[name].nargs for name in counts} == counts
    assert found["beside"].nargs == "?" and not found["beside"].option_strings
    assert found["json"].option_strings == ["--json", "--no-json"]
    words = {name: action.choices for name, action in found.items() if action.choices}
    assert words == {"kind": ["a", "b"], "form": ["long", "short"]}
    assert [found[name].help for name in ("images", "mean", "form")] == [
        "Images.",
        "Mean of each channel.",
        "Its length.",
    ]


def test_places_may_stand_between_flags() -> None:
    look = parse("a.png", "--json", "b.png", "--checkpoint", "w", "c.png", "--batch_size=8", "d")
    assert look.images == ("a.png", "b.png", "c.png", "d")
    assert (look.json, look.checkpoint, look.size.batch_size) == (True, "w", 8)


def test_flags_of_several_values_take_just_these() -> None:
    look = parse("--checkpoint", "w", "--mean", "0", "-1", "1e-3", "a.png")
    assert (look.size.mean, look.images) == ((0.0, -1.0, 0.001), ("a.png",))


def test_after_two_dashes_nothing_is_a_flag() -> None:
    assert parse("--checkpoint", "w", "--", "--json", "x").images == ("./--json", "x")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["a"], "--checkpoint must be given (--help explains it)"),
        (["--checkpoint", "w"], "IMAGES must be given (--help explains it)"),
        (["", "--checkpoint", "w"], "IMAGES must be given (--help explains it)"),
        (["a", "--checkpoint"], "--checkpoint must be one value (got '')"),
        (["a", "--chekpoint", "w"], "--chekpoint is not a flag; near: --checkpoint"),
        (["a", "--checkpoint=w", "--kind", "c"], "--kind must be a or b (got 'c')"),
        (["a", "--checkpoint=w", "--batch-size", "0"], "--batch-size must be 1 or more (got 0)"),
        (["a", "--checkpoint=w", "--json=1"], "--json must be without a value (got '1')"),
    ],
)
def test_a_mistake_is_one_line(argv: list[str], message: str) -> None:
    with pytest.raises(ValueError) as error:
        parse(*argv)
    assert str(error.value) == message


def test_help_has_groups_and_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parse("--help")
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert "size options" in shown and "Images in a batch. (default: 256)" in shown


def test_numbers_are_finite_and_the_home_folder_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert parse("~/a.jpg", "--checkpoint=~/run").checkpoint == "/home/me/run"
    with pytest.raises(ValueError, match="--mean must be finite"):
        parse("a.jpg", "--checkpoint", "b", "--mean", "nan", "0", "0")
