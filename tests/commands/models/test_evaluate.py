"""`fastdeit evaluate`: the scores of a run, on any number of processes; files, JSON, mistakes."""

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from fastdeit.commands.models.evaluate import DataFlags, evaluate_command, find_data
from fastdeit.storage.run_folder import RunFolder
from tests.support.images import CLASSES, write_shapes
from tests.support.launching import FLAGS
from tests.support.ranks import Ranks, run_fastdeit


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("shapes") / "data", val=5)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """The folder of a finished run with an EMA that differs."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    flags = [*FLAGS, "--epochs", "2", "--model-ema-decay", "0.6", "--data-path", str(data)]
    ranks = Ranks(
        folder.with_suffix(".log"),
        run_fastdeit,
        ["train", *flags, "--output-dir", str(folder)],
        world_size=1,
    )
    assert ranks.wait() == 0, ranks.output
    return folder


def evaluate(capsys: pytest.CaptureFixture[str], *argv: object) -> dict[str, Any]:
    """Return what `fastdeit evaluate ... --json` prints."""
    assert evaluate_command([*map(str, argv), "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert isinstance(value, dict)
    return value


def test_scores_are_those_of_the_run_to_the_last_digit(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a run's own folder nothing else has to be named."""
    expected = json.loads(RunFolder(run).summary.read_text())["results"]
    model = evaluate(capsys, run)
    ema = evaluate(capsys, run, "--ema")
    found = model["results"] | ema["results"]
    assert {name: found[name] for name in expected} == expected
    assert model["weights"] != ema["weights"]
    assert model["results"]["model/both/nll"] != ema["results"]["ema/both/nll"]


def test_a_run_whose_data_set_is_elsewhere_asks_for_it(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("config.yaml", "model.safetensors", "config.json"):
        shutil.copy(run / name, copy)
    settings = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(re.sub("data_path: .*", "data_path: gone", settings))
    rule = r"--data-path must be the folder of the data set on this machine; .* \(got 'gone'\)"
    with pytest.raises(ValueError, match=rule):
        find_data(str(copy), DataFlags())
    with pytest.raises(ValueError, match="--data-path must be .*, as runs/none is no run folder"):
        find_data("runs/none", DataFlags())


def test_checkpoints_and_files_of_the_run_find_its_data(run: Path, data: Path) -> None:
    step = next(RunFolder(run).checkpoints.glob("step-*"))
    for place in (run, run / "model_ema.safetensors", step):
        found = find_data(str(place), DataFlags()).data
        assert (found.data_path, found.val_split) == (str(data), "val")
    found = find_data(str(run), DataFlags("other", "test")).data
    assert (found.data_path, found.val_split) == ("other", "test")
    with pytest.raises(ValueError, match=r"--data-path must be the folder of a data set"):
        find_data("test_vit", DataFlags())


def test_any_number_of_processes_gives_the_same_tables(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {name: tmp_path / f"{name}.csv" for name in ("alone", "alone-images", "all", "images")}
    mine = ("--output", files["alone"], "--predictions", files["alone-images"])
    evaluate(capsys, run, *mine, "--batch-size", 4)
    theirs = ["--output", str(files["all"]), "--predictions", str(files["images"])]
    ranks = Ranks(
        tmp_path / "log",
        run_fastdeit,
        # as `deepspeed --module` starts it
        ["--local_rank=0", "evaluate", str(run), *theirs, "--batch-size", "6"],
        world_size=3,
    )
    assert ranks.wait() == 0, ranks.output
    assert ranks.output.count("worst confusions") == 1
    assert files["all"].read_text() == files["alone"].read_text()
    one, other = (read_rows(files[name]) for name in ("alone-images", "images"))
    assert len(one) == 15
    for row, same in zip(one, other, strict=True):
        for name, value in row.items():
            expected = pytest.approx(float(value), abs=2e-6) if "confidence" in name else value
            assert (float(same[name]) if "confidence" in name else same[name]) == expected


def read_rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


def test_an_error_of_all_processes_is_printed_once(run: Path, tmp_path: Path) -> None:
    argv = ["evaluate", str(run), "--class-map", "gone.txt"]
    ranks = Ranks(tmp_path / "log", run_fastdeit, argv)
    assert ranks.wait() == 2
    assert ranks.output.count("fastdeit: error: --class-map must be") == 1, ranks.output


def test_tables_name_classes_heads_and_files(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "classes.json"
    assert evaluate_command([str(run), "--output", str(rows), "--teacher-path", str(run)]) == 0
    shown = capsys.readouterr().out
    for text in ("class head", "distillation head", "teacher", "ECE %", "NLL", *CLASSES):
        assert text in shown
    assert "15 images" in shown and f"{rows}: 3 rows" in shown
    assert [row["class"] for row in json.loads(rows.read_text())] == list(CLASSES)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--output", "table.txt"], "--output must be a file that ends in .csv or .json"),
        (["--predictions", "gone/t.csv"], "--predictions must be in a folder that exists"),
        (["--eval-crop-ratio", "3"], "--eval-crop-ratio must be above 0 and at most 2 (got 3.0)"),
        (["--eval-input-size", "33"], "--eval-input-size must be a size for deit_tiny"),
        (["--val-split", "gone"], "holds no 'gone'"),
        (["--data-path", "gone"], "no such folder"),
        (["--interpolation", "nearest"], "--interpolation must be"),
        (["--teacher-path", "gone"], "gone"),
        (["--valid-labels", "gone"], "--valid-labels must be auto, all, data, or a file"),
        (["--batch-size", "x"], "--batch-size must be"),
        (["--bogus"], "--bogus is not a flag"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    run: Path,
    flags: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        evaluate_command([str(run), *flags])
    shown = capsys.readouterr().err
    assert end.value.code == 2
    assert message in shown and shown.count("\n") == 1


def test_a_file_that_cannot_be_written_loses_no_score(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fastdeit.commands.output.atomic_write_text", refuse)
    with pytest.raises(SystemExit) as end:
        evaluate_command([str(run), "--output", str(tmp_path / "t.csv"), "--json"])
    shown = capsys.readouterr()
    assert end.value.code == 2 and "No space left" in shown.err
    assert "model/both/top1" in json.loads(shown.out)["results"]
