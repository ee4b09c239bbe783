"""Flags that take several values, separated by commas."""

import pytest

from fastdeit.config.parse import join_values, runs_code, split_values
from fastdeit.config.schema.distill import DistillConfig


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("", [""]),
        ("a", ["a"]),
        ("a,b", ["a", "b"]),
        ("a, b", ["a", "b"]),
        (",", ["", ""]),
        ('"a,1.pth",b', ["a,1.pth", "b"]),
        ('"a ""x"", y",b c', ['a "x", y', "b c"]),
    ],
)
def test_values_are_separated_by_commas(text: str, values: list[str]) -> None:
    assert split_values("teacher_path", text) == values


@pytest.mark.parametrize("values", [["a", "b"], ["", ""], ["a,b", 'c"d'], ["a b", "ä"]])
def test_joined_values_are_split_again(values: list[str]) -> None:
    assert split_values("teacher_path", join_values(values)) == values


@pytest.mark.parametrize("text", ['"a,b', '"a"b,c'])
def test_quote_without_an_end_is_refused_by_the_flag(text: str) -> None:
    with pytest.raises(ValueError, match=r"^--teacher-path must be values separated by commas"):
        split_values("teacher_path", text)


def test_several_teachers_have_a_path_each() -> None:
    pairs = DistillConfig(teacher_model="a,b", teacher_path='x,"y,z"').teachers
    assert pairs == [("a", "x"), ("b", "y,z")]
    assert DistillConfig(teacher_model=",", teacher_path="x,y").teachers == [("", "x"), ("", "y")]
    assert DistillConfig(teacher_model="m:f,m:g").teachers == [("m:f", ""), ("m:g", "")]
    pretrained = DistillConfig(teacher_model="a,b", pretrained_teacher=True)
    assert pretrained.teachers == [("a", "a"), ("b", "b")]


def test_path_of_a_single_teacher_may_have_a_comma() -> None:
    assert DistillConfig(teacher_model="a", teacher_path='x,"y').teachers == [("a", 'x,"y')]


@pytest.mark.parametrize("path", ["x", "x,y,z"])
def test_another_number_of_paths_is_refused(path: str) -> None:
    config = DistillConfig(teacher_model="a,b", teacher_path=path)
    allowed = "--teacher-path must be 2 paths separated by commas, one for each --teacher-model"
    with pytest.raises(ValueError, match=allowed):
        config.check()


def test_one_program_among_the_teachers_counts() -> None:
    assert runs_code("regnety_160,torchscript") and runs_code("a,m:f")
    assert not runs_code("regnety_160,resnet50") and not runs_code("hf-hub:x/y,a")
