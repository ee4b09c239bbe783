"""Results of a run: the command to try next, and the metadata of the exported weights."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from fastdeit.config.cli import parse_config
from fastdeit.config.recipes import RECIPES
from fastdeit.config.schema import Config
from fastdeit.display.console import RunConsole
from fastdeit.distributed.world import World
from fastdeit.models.build import weight_metadata
from fastdeit.models.student import build_student
from fastdeit.run.results import list_next_commands, report_finished, show_summary
from fastdeit.storage.run_folder import RunFolder

FOLDER = RunFolder(Path("runs/x"))
ALONE = {"distillation_type": "none"}


def next_command(config: Config, recipe: str, folder: RunFolder) -> str:
    return list_next_commands(config, recipe, folder)[0]


def test_after_a_teacher_comes_its_student() -> None:
    config, recipe = parse_config(["--recipe", "digits_teacher"], "test")
    folder = RunFolder(Path("runs/digits_teacher"))
    assert next_command(config, recipe, folder) == "fastdeit train --recipe digits"


def test_after_digits_comes_the_run_without_distillation_but_only_once() -> None:
    folder = RunFolder(Path("runs/digits"))
    config, recipe = parse_config(["--recipe", "digits", "--epochs", "2"], "test")
    command = next_command(config, recipe, folder)
    assert command == (
        "fastdeit train --recipe digits --distillation-type none --epochs 2 "
        "--output-dir runs/digits_alone"
    )
    config, recipe = parse_config(command.split()[2:], "test")
    assert next_command(config, recipe, FOLDER) == "fastdeit evaluate runs/x"


def test_command_is_that_of_the_launcher_and_without_a_checkout_of_the_module(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    config = Config().replace(model={"model": "resnet10t"}, distill=ALONE)
    config = config.replace(data={"data_path": "my images"})
    assert next_command(config, "deit", FOLDER) == (
        "deepspeed fastdeit/train.py --data-path 'my images' --teacher-model resnet10t "
        "--teacher-path runs/x"
    )
    monkeypatch.chdir(tmp_path)
    command = next_command(config, "deit", FOLDER)
    assert command.startswith("deepspeed --module fastdeit train --data-path 'my images' ")


@pytest.mark.parametrize(
    "config", [Config(), Config().replace(distill=ALONE)], ids=["distilled", "alone"]
)
def test_after_a_student_come_the_scores_of_its_classes(config: Config) -> None:
    assert next_command(config, "deit", FOLDER) == "fastdeit evaluate runs/x"


def test_summary_marks_a_finished_run(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.config.write_text("")
    folder.model.write_text("")
    assert not folder.is_finished
    folder.summary.write_text("{}")
    assert folder.is_finished


def test_damaged_summary_is_named(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.summary.write_text("{")
    with pytest.raises(ValueError, match=r"summary\.json: damaged"):
        report_finished(Config(), "deit", World(0, 1, 0, 1, torch.device("cpu")), folder)


def test_summary_names_the_weights_of_an_earlier_version(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # so that no line is broken
    folder = RunFolder(Path("run"))
    folder.path.mkdir()
    (folder.path / "student.safetensors").touch()
    console = RunConsole(1, 1, enabled=True)
    show_summary(console, RECIPES["digits"](), "digits", folder, {"model/both/top1": 50.0})
    assert "run/student.safetensors" in capsys.readouterr().out


def test_metadata_describes_the_student_and_its_input() -> None:
    config = Config().replace(
        model={"model": "deit_tiny_distilled_patch16_224"},
        data={
            "input_size": 32,
            "mean": (0.1, 0.2, 0.3),
            "std": (0.4, 0.5, 0.6),
            "eval_crop_ratio": 0.9,
        },
    )
    student = build_student(
        config.model.model, num_classes=2, image_size=32, embed_dim=32, depth=1, num_heads=4
    )
    metadata = weight_metadata(config, ("cat", "dog"), student)
    assert metadata.pop("model") == "deit_tiny_distilled_patch16_224"
    assert metadata.pop("format") == "pt"
    assert {name: json.loads(value) for name, value in metadata.items()} == {
        "input_size": 32,
        "mean": [0.1, 0.2, 0.3],
        "std": [0.4, 0.5, 0.6],
        "crop_pct": 0.9,
        "num_classes": 2,
        "classes": ["cat", "dog"],
        "num_heads": 4,
    }


def test_metadata_of_a_timm_model_has_no_heads() -> None:
    config = Config().replace(model={"model": "resnet10t"}, distill=ALONE)
    metadata = weight_metadata(config, ("cat",), nn.Linear(1, 1))
    assert metadata["model"] == "resnet10t" and "num_heads" not in metadata
