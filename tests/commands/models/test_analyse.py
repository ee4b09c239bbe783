"""`fastdeit analyse`: of a run with recorded answers and without, of other weights; mistakes."""

import json
from pathlib import Path
from typing import Any

import pytest

from fastdeit.commands.models.analyse import analyse_command
from fastdeit.storage.run_folder import RunFolder
from tests.support.images import CLASSES, write_shapes
from tests.support.trained import write_student
from tests.support.untrained_run import write_run


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("shapes") / "data", train=4)


@pytest.fixture
def run(tmp_path: Path, data: Path) -> RunFolder:
    teacher = write_student(tmp_path / "teacher", CLASSES, seed=3, distilled=False)
    named = {"teacher_model": "", "teacher_path": str(teacher)}
    return write_run(tmp_path / "run", data, distill=named)


def analyse(capsys: pytest.CaptureFixture[str], *argv: object) -> dict[str, Any]:
    """Return what `fastdeit analyse ... --json` prints."""
    assert analyse_command([*map(str, argv), "--images", "3", "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert isinstance(value, dict)
    return value


def test_recorded_answers_need_no_pass_over_the_images(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    found = analyse(capsys, run)
    assert found["images"] == 3 and found["disagreement"]["images"] == 9
    assert found["disagreement"]["names"] == ["labels", "model/cls", "model/both"]
    assert found["answers"] == "of all 9 images, recorded at step 4"


def test_what_they_lack_is_answered_by_the_models(
    run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = analyse(capsys, run, "--teacher-path", tmp_path / "teacher")["disagreement"]
    split = analyse(capsys, run, "--val-split", "train")["disagreement"]
    assert named["names"][-1] == split["names"][-1] == "teacher/both"
    run.predictions.write_bytes(b"PAR1")
    assert analyse_command([str(run), "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["disagreement"]["images"] == 9
    assert shown.err.startswith(f"note: {run.predictions}: damaged")


def test_without_them_the_heads_ema_and_teacher_of_the_run_answer(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    run.predictions.unlink()
    run.model_ema.write_bytes(run.model.read_bytes())
    found = analyse(capsys, run)["disagreement"]
    heads = [f"{model}/{head}" for model in ("model", "ema") for head in ("cls", "dist", "both")]
    assert found["names"] == ["labels", *heads, "teacher/both"] and found["images"] == 3
    for head in (1, 2, 3):
        assert found["percent"][head][head + 3] == 0
    names = analyse(capsys, run, "--ema", "--other", run)["disagreement"]["names"]
    assert names[1] == "ema/cls" and names[4] == "other/cls"


def test_a_program_that_a_run_names_as_its_teacher_does_not_run(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "trap.py").write_text("raise SystemExit('it ran')")
    weights = write_student(tmp_path / "teacher", CLASSES)
    named = {"teacher_model": "trap:net", "teacher_path": str(RunFolder(weights).model)}
    run = write_run(tmp_path / "run", data, distill=named)
    run.predictions.unlink()
    assert "teacher/both" not in analyse(capsys, run)["disagreement"]["names"]


def test_tables_name_places_and_classifiers(
    run: RunFolder, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert analyse_command([str(run.model), "--data-path", str(data)]) == 0
    shown = capsys.readouterr().out
    for text in ("learned", "layer 3", "final norm", "1 labels", "4 model/both", "val: 9 of 9"):
        assert text in shown
    assert "0.06 learned, 0.93 after the last layer" in shown


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--images", "-1"], "--images must be 0 or more (got -1)"),
        (["--images", "x"], "--images"),
        (["--other", "gone"], "no checkpoint at gone"),
        (["--class-map", "gone.txt"], "--class-map must be"),
        (["--teacher-path", "gone"], "no checkpoint at gone"),
        (["--data-path", "gone"], "gone: no such folder"),
        (["--device", "cuda"], "--device must be cpu"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line(
    run: RunFolder, argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if "--other" not in argv:
        run.predictions.unlink()
    with pytest.raises(SystemExit, match="2"):
        analyse_command([str(run), *argv])
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
