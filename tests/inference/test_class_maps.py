"""Outputs of a model for the classes of a data set: by name, number, position or file, and nothing
by chance."""

import json
from importlib import resources
from pathlib import Path

import pytest
from timm.data import ImageNetInfo

from fastdeit.inference.class_maps import match_classes, read_real_labels

SYNSETS = ImageNetInfo().label_names()
INFO = resources.files("timm.data") / "_info"
NUMBERS = sorted(map(str, range(1000)))


def info(name: str) -> list[str]:
    return (INFO / name).read_text().split()


def test_names_are_matched_in_any_order_and_as_a_subset() -> None:
    found = match_classes(["dog", "ant"], ["ant", "cat", "dog"], 3)
    assert (found.labels, found.outputs, found.names) == ((2, 0), None, ("ant", "cat", "dog"))
    only = match_classes(["dog", "ant"], ["ant", "cat", "dog"], 3, valid_labels="data")
    assert (only.labels, only.outputs, only.names) == ((1, 0), (0, 2), ("ant", "dog"))


def test_a_model_of_1000_outputs_without_names_has_imagenets() -> None:
    assert match_classes(SYNSETS[::-1], None, 1000).labels == tuple(range(1000))[::-1]


def test_imagenet_v2_has_the_numbers_of_the_outputs() -> None:
    """Its folders, sorted as text, are 0, 1, 10, 100, ..."""
    for names in (None, SYNSETS):
        found = match_classes(NUMBERS, names, 1000)
        assert found.labels == tuple(map(int, NUMBERS)) and found.outputs is None
        assert found.names == tuple(SYNSETS)


@pytest.mark.parametrize("letter", ["a", "r"])
def test_imagenet_a_and_r_score_their_200_outputs(letter: str) -> None:
    data = sorted(info(f"imagenet_{letter}_synsets.txt"))
    found = match_classes(data, None, 1000)
    assert found.outputs == tuple(sorted(map(int, info(f"imagenet_{letter}_indices.txt"))))
    assert [found.names[label] for label in found.labels] == data
    assert f"200 of 1000 outputs ImageNet-{letter.upper()}" in found.description
    whole = match_classes(data, None, 1000, valid_labels="all")
    assert whole.outputs is None and whole.labels[0] == SYNSETS.index(data[0])


def test_files_of_timm_mean_what_they_mean_in_timm() -> None:
    """--class-map imagenet_a_synsets.txt --valid-labels imagenet_a_indices.txt"""
    files = {name: str(INFO / f"imagenet_a_{name}.txt") for name in ("synsets", "indices")}
    data = sorted(info("imagenet_a_synsets.txt"))
    found = match_classes(
        data, None, 1000, class_map=files["synsets"], valid_labels=files["indices"]
    )
    automatic = match_classes(data, None, 1000)
    assert (found.labels, found.outputs) == (automatic.labels, automatic.outputs)
    by_position = match_classes(
        data, None, 1000, class_map="position", valid_labels=files["indices"]
    )
    assert by_position.labels == found.labels and by_position.outputs == found.outputs


def test_a_json_file_may_name_some_classes(tmp_path: Path) -> None:
    file = tmp_path / "map.json"
    file.write_text(json.dumps({"Hund": 2, "Ameise": 0, "more": 1}))
    found = match_classes(["Ameise", "Hund"], ["ant", "cat", "dog"], 3, class_map=str(file))
    assert found.labels == (0, 2) and found.names == ("ant", "cat", "dog")


def test_without_names_the_position_counts_and_is_said() -> None:
    found = match_classes(["a", "b"], None, 2)
    assert found.labels == (0, 1) and found.names == ("a", "b")
    assert found.description == "by position, as the weights name no classes"


@pytest.mark.parametrize(
    ("data", "model", "count", "arguments", "message"),
    [
        (["a", "fox"], ["a", "b"], 2, {}, "the weights name 2 classes, but not 'fox'"),
        (["a", "b", "c"], None, 2, {}, "the data set has 3 classes, the model scores 2 outputs"),
        ([*"0123456789", "10"], None, 12, {}, "has 11 classes, the model scores 12"),
        (sorted(map(str, range(11))), None, 11, {}, "numbers, in the order of text"),
        (["a", "b"], ["a", "b"], 2, {"class_map": "number"}, "'a', 'b' is no number below 2"),
        (["a"], None, 2, {"class_map": "position"}, "the data set has 1 classes"),
        (["a"], None, 2, {"class_map": "map.pkl"}, "--class-map must be position, number"),
        (["a"], None, 2, {"valid_labels": "gone.txt"}, "--valid-labels must be auto, all, data"),
        (["a"], None, 1000, {"class_map": "imagenet"}, "a map with the data set's class 'a'"),
        (["\x1b[31m" * 30], ["b"], 1, {}, r"not '\\x1b\[31m"),
    ],
)
def test_what_does_not_match_is_refused(
    data: list[str],
    model: list[str] | None,
    count: int,
    arguments: dict[str, str],
    message: str,
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        match_classes(data, model, count, **arguments)
    assert "\n" not in str(error.value) and "\x1b" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("short.txt", "a\nb\n", r"one class for each of the 3 outputs \(got 2 lines\)"),
        ("twice.txt", "a\nb\na\n", "one class for each of the 3 outputs"),
        ("list.json", "[1]", "an object from a class to its output, below 3"),
        ("large.json", '{"a": 3}', "an object from a class to its output, below 3"),
        ("torn.json", '{"a"', "torn.json"),
        ("deep.json", "[" * 100_000, "deep.json"),
    ],
)
def test_a_damaged_class_map_is_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        match_classes(["a"], None, 3, class_map=str(tmp_path / name))


@pytest.mark.parametrize("text", ["", "1\n1\n", "5\n", "x\n"])
def test_damaged_valid_labels_are_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "valid.txt").write_text(text)
    with pytest.raises(ValueError, match=r"valid\.txt: must have different numbers below 3"):
        match_classes(["a"], None, 3, valid_labels=str(tmp_path / "valid.txt"))


def test_real_labels_are_found_by_the_names_of_the_archives_and_of_the_hub(tmp_path: Path) -> None:
    (tmp_path / "real.json").write_text("[[5], [7, 8]]")
    names = ["val/ILSVRC2012_val_00000002.JPEG", "v/000_ILSVRC2012_val_00000001_n01751748.JPEG"]
    assert read_real_labels(str(tmp_path / "real.json"), names) == [[7, 8], [5]]
