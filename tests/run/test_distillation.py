"""Whole runs with other students and several teachers: trained, resumed, replayed, and with a
teacher cache. A step replayed equally has the recorded samples and losses."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fastdeit.commands.runs.replay import replay_command
from fastdeit.distributed.world import init_distributed
from fastdeit.run.inputs import read_inputs
from fastdeit.storage.jsonl import read_json_lines
from fastdeit.storage.run_folder import RunFolder
from tests.support.cache_runs import RUN, Setting, cache, train, write_teacher

CONVNET = ["--model", "test_resnet"]
LAST = 5
"""Of two epochs."""


class Ensemble(Setting):
    """Two teachers, the second in a file with a comma in its name."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.second = write_teacher(root / "two, large.safetensors", self.data, seed=4)

    @property
    def taught(self) -> list[str]:
        return self.name_teachers(f'{self.teacher},"{self.second}"')

    def name_teachers(self, paths: str) -> list[str]:
        return ["--teacher-model", "test_resnet,test_resnet", "--teacher-path", paths]


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Ensemble:
    init_distributed()
    return Ensemble(tmp_path_factory.mktemp("distillation"))


def train_convnet(setting: Ensemble, folder: Path, *flags: str) -> int:
    form = ["--epochs", "2", "--output-dir", str(folder)]
    return train(["--data-path", str(setting.data), *RUN, *CONVNET, *form, *flags])


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_same_weights(one: Path, two: Path) -> None:
    theirs = weights_of(two)
    for name, value in weights_of(one).items():
        assert torch.equal(value, theirs[name]), name


def replay(folder: Path, step: int, *flags: str) -> tuple[int, dict[str, Any]]:
    code = replay_command([str(folder), "--step", str(step), *flags])
    return code, json.loads((folder / f"replay-{step}" / "step.json").read_text())


@pytest.fixture(scope="module")
def recorded(setting: Ensemble) -> Path:
    folder = setting.root / "cache"
    assert setting.build(folder, epochs="0-1") == 0
    return folder


@pytest.fixture(scope="module")
def live(setting: Ensemble) -> Path:
    """A ConvNet that two live teachers have taught."""
    folder = setting.root / "live"
    assert train_convnet(setting, folder, *setting.taught) == 0
    return folder


def test_run_records_every_teacher_and_its_own_results(live: Path) -> None:
    teacher = read_inputs(RunFolder(live))["teacher"]
    assert teacher["name"] == ["test_resnet", "test_resnet"] and teacher["input_size"] == [32, 32]
    assert len(set(teacher["weights"])) == 2
    results = json.loads((live / "summary.json").read_text())["results"]
    assert {"model/both/top1", "model/both/agreement", "teacher/both/top1"} <= results.keys()
    losses = [line for line in read_json_lines(live / "metrics.jsonl") if "distill" in line]
    assert losses and all(line["distill"] > 0 for line in losses)
    assert any("running_var" in name for name in weights_of(live))


def test_cached_run_of_a_convnet_equals_the_live_one(
    setting: Ensemble, live: Path, recorded: Path, tmp_path: Path
) -> None:
    assert train_convnet(setting, tmp_path, "--cache", str(recorded)) == 0
    assert_same_weights(tmp_path, live)
    assert read_inputs(RunFolder(tmp_path))["teacher"]["name"] == ["test_resnet", "test_resnet"]


def test_stopped_run_of_a_convnet_ends_with_the_same_weights(
    setting: Ensemble, live: Path, tmp_path: Path
) -> None:
    assert train_convnet(setting, tmp_path, *setting.taught, "--stop-after-steps", "2") == 0
    assert train_convnet(setting, tmp_path, *setting.taught) == 0
    assert_same_weights(tmp_path, live)


def test_step_of_a_convnet_is_replayed_with_its_teachers(live: Path) -> None:
    for step in (1, LAST):
        code, report = replay(live, step)
        assert code == 0 and report["inputs"]["same"] and report["recorded"]["same_samples"]
        for name in ("loss", "base", "distill", "grad_norm"):
            assert report["now"][name] == report["recorded"]["values"][name], name


def test_teachers_in_another_order_are_others(
    setting: Ensemble, live: Path, recorded: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    turned = setting.name_teachers(f'"{setting.second}",{setting.teacher}')
    assert train_convnet(setting, live, *turned) == 2
    error = capfd.readouterr().err
    assert "with other files: --teacher-path: " in error and error.count("\n") == 1
    for flags in (["--cache-miss", "live"], []):
        new = setting.root / "new"
        assert train_convnet(setting, new, *turned, "--cache", str(recorded), *flags) == 2
        assert "was recorded for another run: teacher.weights ['" in capfd.readouterr().err
        assert not new.exists()


def test_cache_names_its_teachers(recorded: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cache(["info", str(recorded)]) == 0
    assert "['test_resnet', 'test_resnet']" in capfd.readouterr().out


def test_replay_finds_relative_paths_of_several_teachers(
    setting: Ensemble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also from another working directory."""
    monkeypatch.chdir(setting.root)
    relative = setting.name_teachers(f'{setting.teacher.name},"{setting.second.name}"')
    stop = ["--stop-after-steps", "1"]
    assert train_convnet(setting, Path("relative"), *relative, *stop) == 0
    monkeypatch.chdir(tmp_path)
    assert replay(setting.root / "relative", 0)[0] == 0


WRONG = {
    "too few": ("{one}", "--teacher-path must be 2 paths separated by commas, one for each"),
    "missing": ("{one},/no/file", "--teacher-path must be an existing file"),
    "open quote": ('{one},"x', "--teacher-path must be values separated by commas"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_paths_are_refused_in_one_line(
    case: str, setting: Ensemble, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    paths, message = WRONG[case]
    taught = setting.name_teachers(paths.format(one=setting.teacher))
    assert train_convnet(setting, tmp_path / "run", *taught) == 2
    error = capfd.readouterr().err
    assert message in error and error.count("\n") == 1 and not (tmp_path / "run").exists()


def test_paths_without_names_are_refused(
    setting: Ensemble, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    one = ["--teacher-model", "test_resnet", "--teacher-path", f"{setting.teacher},b"]
    assert train_convnet(setting, tmp_path / "run", *one) == 2
    assert "for several teachers, --teacher-model has as many names" in capfd.readouterr().err
