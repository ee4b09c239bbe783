"""What a command writes for other programs."""

import csv
import json
from pathlib import Path

import pytest

from fastdeit.commands.output import check_table, print_json, write_table
from fastdeit.display.terminal import Terminal

HOSTILE = 'a\x1b[31m\nb,"c" \udcff [red] :smile: ' + "x" * 300
ROWS = [
    {"class": HOSTILE, "images": 3, "top1": 0.1 + 0.2, "scores": [1.5, float("nan")]},
    {"class": "ä", "images": 0, "top1": None, "scores": []},
]


def test_json_on_stdout_is_one_value_whatever_the_names(capsys: pytest.CaptureFixture[str]) -> None:
    print_json(Terminal(), {"rows": ROWS})
    out = capsys.readouterr().out
    assert out.isascii()
    value = json.loads(out)
    assert value["rows"][0]["top1"] == 0.1 + 0.2
    assert value["rows"][0]["scores"] == [1.5, "nan"]
    assert value["rows"][0]["class"] == HOSTILE.replace("\udcff", "\\udcff")


def test_csv_has_printable_names_and_whole_numbers(tmp_path: Path) -> None:
    file = tmp_path / "table.csv"
    write_table(file, ROWS)
    text = file.read_text()
    assert "\x1b" not in text
    first, second = csv.DictReader(text.splitlines())
    assert float(first["top1"]) == 0.1 + 0.2
    assert first["class"].startswith('a\\x1b[31m\\nb,"c" \\xff [red]')
    assert json.loads(first["scores"]) == [1.5, "nan"]
    assert (second["class"], second["top1"]) == ("ä", "")


def test_json_file_has_the_rows(tmp_path: Path) -> None:
    file = tmp_path / "table.json"
    write_table(file, ROWS)
    assert [row["images"] for row in json.loads(file.read_text())] == [3, 0]
    write_table(tmp_path / "none.csv", [])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("table.txt", "must be a file that ends in .csv or .json"),
        ("gone/table.csv", "must be in a folder that exists and can be written"),
        ("folder.csv", "must be a file, not a folder"),
    ],
)
def test_what_cannot_be_written_is_named_before_the_work(
    tmp_path: Path, name: str, message: str
) -> None:
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(ValueError, match=message) as error:
        check_table(tmp_path / name)
    assert str(error.value).startswith("--output must be")
