"""`fastdeit predict`: tables, JSON, CSV and pictures of hostile and damaged images."""

import csv
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from fastdeit.commands.models.predict import predict_command
from fastdeit.display import figures
from tests.support.images import CLASSES, write_shapes
from tests.support.trained import write_student

HOSTILE = 'a\x1b[31m[red]\n,"$x_1$" \u202e :smile:'


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("predict") / "data") / "val"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_student(tmp_path_factory.mktemp("run"), CLASSES)


def predict_json(capsys: pytest.CaptureFixture[str], *argv: object, code: int = 0) -> Any:
    assert predict_command([*map(str, argv), "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_tables_have_the_probabilities_of_each_head(
    data: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = data / "circle" / "00.png"
    said = predict_json(capsys, file, "--checkpoint", run)
    assert predict_command([str(file), "--checkpoint", str(run), "--top-k", "2"]) == 0
    out = capsys.readouterr().out
    assert str(file) in out and "distillation head" in out
    best, second, third = said["images"][0]["classes"]
    assert best["both"] >= second["both"] >= third["both"] and out.count("%") == 6
    for head in ("both", "cls", "dist"):
        assert f"{best[head]:.2%}" in out
    assert sum(row["cls"] for row in said["images"][0]["classes"]) == pytest.approx(1)
    assert said["view"]["size"] == 32 and said["checkpoint"] == str(run)


def test_heads_that_disagree_are_named(
    data: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = predict_json(capsys, data, "--checkpoint", run)
    differ = [image["first"] for image in said["images"] if len(set(image["first"].values())) > 1]
    assert predict_command([str(data), "--checkpoint", str(run)]) == 0
    out = capsys.readouterr().out
    assert 0 < out.count("the heads disagree") <= len(differ)


def test_hostile_names_and_damaged_files_stay_one_line_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = write_student(tmp_path / "weights", [HOSTILE, "dog"])
    images = tmp_path / HOSTILE
    images.mkdir()
    good = images / f"{HOSTILE}.png"
    Image.new("RGB", (40, 40), (9, 99, 200)).save(good)
    odd = os.fsencode(images) + b"/K\xe4se.png"
    Path(os.fsdecode(odd)).write_bytes(b"no image")
    argv = [str(images), "--checkpoint", str(weights), "--output", str(tmp_path / "x.csv")]
    assert predict_command(argv) == 1
    shown = capsys.readouterr()
    assert "\x1b" not in shown.out + shown.err and "\u202e" not in shown.out
    assert "K\\xe4se.png: is no image that can be read" in shown.err
    assert "1 of 2 images could not be read" in shown.err
    rows = list(csv.DictReader((tmp_path / "x.csv").read_text().splitlines()))
    assert [row["fault"] for row in rows] == ["is no image that can be read", "", ""]
    assert {row["name"] for row in rows[1:]} >= {"dog"} and rows[0]["label"] == ""
    said = predict_json(capsys, images, "--checkpoint", weights, code=1)
    assert {row["name"] for row in said["images"][1]["classes"]} == {HOSTILE, "dog"}
    assert said["images"][0]["classes"] == [] and said["images"][1]["fault"] == ""


def test_exif_rotation_is_said_and_applied_if_asked_for(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    file = tmp_path / "x.png"
    with Image.open(data / "circle" / "00.png") as image:
        image.save(file, exif=exif)
    argv = [str(file), "--checkpoint", str(run)]
    predict_command(argv)
    assert "EXIF orientation 6: not applied (--exif-rotate applies it)" in capsys.readouterr().out
    predict_command([*argv, "--exif-rotate"])
    assert "EXIF orientation 6: applied" in capsys.readouterr().out
    stored = predict_json(capsys, *argv)["images"][0]
    turned = predict_json(capsys, *argv, "--exif-rotate")["images"][0]
    assert (stored["exif_applied"], turned["exif_applied"]) == (False, True)
    assert stored["classes"] != turned["classes"]


def test_attention_is_drawn_for_each_image(
    data: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "maps.png"
    circles = data / "circle"
    (tmp_path / "bad.png").write_bytes(b"no image")
    argv = [tmp_path / "bad.png", circles, "--checkpoint", run, "--attention", target]
    said = predict_json(capsys, *argv, code=1)
    sheets = [image["attention"] for image in said["images"]]
    assert sheets == [None, *(str(tmp_path / f"maps-{number}.png") for number in (2, 3, 4))]
    for sheet in sheets[1:]:
        with Image.open(sheet) as drawn:
            assert drawn.size == (850, 605)  # five columns, three rows
    said = predict_json(capsys, circles / "00.png", "--checkpoint", run, "--attention", target)
    assert said["images"][0]["attention"] == str(target) and target.is_file()


def test_a_picture_that_cannot_be_drawn_is_a_note(
    data: Path,
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(figures, "save_heat_maps", fail)
    argv = [str(data / "circle" / "00.png"), "--checkpoint", str(run)]
    assert predict_command([*argv, "--attention", str(tmp_path / "x.png")]) == 0
    shown = capsys.readouterr()
    assert "x.png could not be made: MemoryError: no room" in shown.err
    assert "class head" in shown.out
    assert not list(tmp_path.iterdir())


def test_another_view_changes_the_input(
    data: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [data / "circle" / "00.png", "--checkpoint", run]
    usual = predict_json(capsys, *argv)
    larger = predict_json(capsys, *argv, "--eval-input-size", "48", "--eval-crop-ratio", "1")
    assert larger["view"] == {**usual["view"], "size": 48, "crop_pct": 1.0}
    assert larger["images"] != usual["images"]


def test_ema_is_used_if_asked_for(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_student(tmp_path / "run", CLASSES)
    other = write_student(tmp_path / "other", CLASSES, seed=1)
    (other / "model.safetensors").rename(run / "model_ema.safetensors")
    argv = [data / "circle" / "00.png", "--checkpoint", run]
    assert predict_json(capsys, *argv) != predict_json(capsys, *argv, "--ema")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--checkpoint", "RUN"], "IMAGES must be given"),
        (["DATA"], "--checkpoint must be given"),
        (["gone.png", "--checkpoint", "RUN"], "gone.png: no such file or folder"),
        (["DATA", "--checkpoint", "gone"], "the weights must be"),
        (["DATA", "--checkpoint", "DATA/circle/00.png"], "00.png"),
        (["DATA", "--checkpoint", "RUN", "--top-k", "0"], "--top-k must be 1 or more"),
        (["DATA", "--checkpoint", "RUN", "--batch-size", "0"], "--batch-size must be 1 or more"),
        (["DATA", "--checkpoint", "RUN", "--std", "1", "0", "1"], "--std must be three numbers"),
        (["DATA", "--checkpoint", "RUN", "--eval-input-size", "50"], "--eval-input-size must be"),
        (["DATA", "--checkpoint", "RUN", "--output", "x.txt"], "--output must be a file that ends"),
        (["DATA", "--checkpoint", "RUN", "--attention", "gone/x.png"], "--attention must be in a"),
        (["DATA", "--checkpoint", "RUN", "--attention", "x.jpg"], "--attention must be a file"),
        (["DATA", "--checkpoint", "RUN", "--chekpoint", "x"], "--chekpoint is not a flag"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(
    argv: list[str],
    message: str,
    data: Path,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    named = [word.replace("DATA", str(data)).replace("RUN", str(run)) for word in argv]
    with pytest.raises(SystemExit, match="2"):
        predict_command(named)
    shown = capsys.readouterr()
    assert message in shown.err and shown.err.count("\n") == 1 and shown.out == ""
    assert not list(tmp_path.iterdir())


def test_a_model_without_maps_is_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import timm

    weights = tmp_path / "resnet.pth"
    torch.save({"model": timm.create_model("test_resnet").state_dict()}, weights)
    argv = [str(data), "--checkpoint", str(weights), "--model", "test_resnet"]
    assert predict_command(argv) == 0
    assert "n0" in capsys.readouterr().out  # 1000 outputs without names: ImageNet's
    with pytest.raises(SystemExit, match="2"):
        predict_command([*argv, "--attention", str(tmp_path / "x.png")])
    assert "--attention must be used with a Vision Transformer" in capsys.readouterr().err


def test_help_describes_exit_codes_and_defaults(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        predict_command(["--help"])
    said = " ".join(capfd.readouterr().out.replace("│", " ").split())
    assert "Exit codes: 0; 1 if an image could not be read" in said
    assert "--top-k INT" in said and "(default: 5)" in said and "IMAGE ..." in said
