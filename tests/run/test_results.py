"""Results of a run: the command to try next, and the metadata of the exported weights."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fastdeit.commands.runs.train import train_command
from fastdeit.config.cli import parse_config
from fastdeit.config.recipes import RECIPES
from fastdeit.config.schema import Config
from fastdeit.display.console import RunConsole
from fastdeit.distributed.errors import RunError
from fastdeit.distributed.world import World, init_distributed
from fastdeit.library.training import train_run
from fastdeit.models.build import weight_metadata
from fastdeit.models.student import build_student
from fastdeit.run.results import (
    describe_training,
    list_next_commands,
    report_finished,
    show_summary,
)
from fastdeit.storage.run_folder import RunFolder
from fastdeit.tracking.callbacks import Callback, RunEnd
from tests.support.images import write_shapes
from tests.support.launching import FLAGS
from tests.support.pages import run_commands

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


def printed(output: str, label: str) -> list[str]:
    """Return the commands that were printed after a label."""
    return [
        line.removeprefix(f"{label}: ")
        for line in output.splitlines()
        if line.startswith(f"{label}: ")
    ]


def test_each_printed_command_runs_as_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    init_distributed()
    data = write_shapes(tmp_path / "my data")
    folder = "runs/it's"
    (tmp_path / "watch_results.py").write_text(WATCHER)
    monkeypatch.syspath_prepend(tmp_path)
    flags = [*FLAGS, "--epochs", "2", "--output-dir", folder, "--callback", "watch_results:Watch"]
    argv = ["--data-path", str(data), *flags, "--prometheus", "x.prom", "--stop-after-steps", "2"]
    assert train_command(argv) == 0
    stopped = capsys.readouterr().out
    assert "best epoch" not in stopped and not printed(stopped, "next")
    (resume,) = printed(stopped, "resume")
    run_commands(resume)
    said = capsys.readouterr().out
    assert not printed(said, "resume") and re.search(r"^time: \d+ s in 2 starts$", said, re.M)
    assert re.search(r"^best epoch: [12] of 2, validation top-1 [\d.]+ % \(EMA\)$", said, re.M)
    names = ("model", "model_ema", "model_best", "model_ema_best")
    assert all(f": {folder}/{name}.safetensors\n" in said for name in names)
    commands = printed(said, "next")
    assert [command.split()[1] for command in commands] == ["evaluate", "predict", "export"]
    # started again, it says the same
    run_commands(resume)
    again = capsys.readouterr().out
    assert printed(again, "next") == commands and said.partition("time: ")[2] in again
    run_commands("\n".join(commands))
    assert (tmp_path / folder / "export" / "config.json").is_file()
    events = (tmp_path / "events").read_text().split("\n")
    starts = [events.index("start 0 0"), events.index("start 2 2")]
    assert (
        starts[0] == 0
        and events[starts[1] - 1] == "end stopped 2"
        and events[-2] == ("end finished 6")
    )
    logged = [event for event in events if event.startswith("log")]
    assert logged == [f"log {step}" for step in range(1, 7)]
    assert "checkpoint step-00000006" in events and "evaluation 6" in events
    assert "fastdeit_running" in (tmp_path / "x.prom").read_text()


WATCHER = """
import fastdeit

def note(*words):
    with open("events", "a") as file:
        print(*words, file=file)

class Watch(fastdeit.Callback):
    def on_start(self, run): note("start", run.step, run.logged_step)
    def on_images(self, step, images, titles): note("images", images.shape, len(titles))
    def on_log(self, line): note("log", line["step"])
    def on_evaluation(self, line): note("evaluation", line["step"])
    def on_checkpoint(self, step, path): note("checkpoint", path.name)
    def on_end(self, end): note("end", end.outcome, end.step)
"""


def test_a_run_that_fails_says_how_to_resume(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    init_distributed()
    data = write_shapes(tmp_path / "data")
    ends: list[RunEnd] = []

    class Watch(Callback):
        def on_end(self, end: RunEnd) -> None:
            ends.append(end)

    def fail(run: Any) -> None:
        raise RunError("the disk is gone")

    monkeypatch.setattr("fastdeit.library.execution.train", fail)
    argv = ["--data-path", str(data), *FLAGS, "--output-dir", str(tmp_path / "run")]
    config, _ = parse_config(argv, "test")
    with pytest.raises(RunError, match="the disk is gone"):
        train_run(config, callbacks=[Watch()])
    (resume,) = printed(capsys.readouterr().out, "resume")
    assert parse_config(shlex.split(resume)[2:], "test")[0] == config
    assert ends == [RunEnd("failed", 0, "RunError: the disk is gone")]
    with pytest.raises(ValueError, match=r"^callbacks must be fastdeit\.Callback \(got 'x'\)"):
        train_run(config, callbacks=["x"])  # type: ignore[list-item]
    named = config.replace(tracking={"callback": ("a:B",)})
    with pytest.raises(ValueError, match=r"^callback must be empty here: train_run takes objects"):
        train_run(named)


def test_a_log_of_an_older_version_has_a_best_epoch_and_no_time(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    lines = ['{"step": 3, "model/both/top1": 50.0}', '{"step": 6, "model/both/top1": 50.0}', "{"]
    folder.metrics.write_text("\n".join(['{"step": 2, "loss": 1.0}', *lines]))
    assert describe_training(folder, 2) == {
        "best epoch": "step 6, validation top-1 50.00 % (model)"
    }
    assert describe_training(RunFolder(tmp_path / "nowhere"), 2) == {}
