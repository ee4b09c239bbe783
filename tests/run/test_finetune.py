"""Fine-tuning with a teacher, whole runs: a larger resolution, the model of the weights, frozen
weights through resume, replay and cache, and another data set."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fastdeit.commands.runs.replay import replay_command
from fastdeit.config.changes import read_settings
from fastdeit.distributed.world import init_distributed
from fastdeit.storage.run_folder import RunFolder
from tests.support.cache_runs import MODEL, Setting, cache, train
from tests.support.images import write_shapes

LARGER = ["--input-size", "48", "--model", "", "--epochs", "1"]
HEADS = {"head.weight", "head.bias", "head_dist.weight", "head_dist.bias"}


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    init_distributed()
    return Setting(tmp_path_factory.mktemp("finetune"))


@pytest.fixture(scope="module")
def start(setting: Setting) -> Path:
    """A run at 32 px without a teacher."""
    folder = setting.root / "start"
    assert setting.train(folder, "--distillation-type", "none", epochs=1) == 0
    return folder


def command(setting: Setting, start: Path, folder: Path, *flags: str) -> list[str]:
    given = [*setting.samples, *setting.taught, *LARGER, "--finetune", str(start)]
    return [*given, "--output-dir", str(folder), *flags]


def weights(folder: Path, name: str = "model") -> dict[str, torch.Tensor]:
    return load_file(folder / f"{name}.safetensors")


def test_frozen_weights_at_a_larger_size_through_resume_replay_and_cache(
    setting: Setting, start: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    start = Path(shutil.copytree(start, tmp_path / "start"))
    folder = tmp_path / "run"
    argv = command(setting, start, folder, "--trainable", "heads")
    assert train([*argv, "--stop-after-steps", "1"]) == 0
    said = " ".join(capfd.readouterr().out.split())
    assert "position embedding resized from 4 x 4 to 6 x 6 patches" in said
    assert "48 px" in said and "32 px (resized from 48)" in said and "198 of them trained" in said
    model = read_settings(folder / "config.yaml", "--config").model
    assert (model.model, model.patch_size, model.depth) == (MODEL[1], 8, 2)
    # at another stage, with the teacher's records
    records = tmp_path / "cache"
    assert cache(["build", *argv, "-o", str(records)]) == 0
    argv += ["--cache", str(records)]
    assert train([*argv, "--zero-stage", "3"]) == 0
    before, after = weights(start), weights(folder)
    changed = {name for name in before if not before[name].equal(after[name])}
    assert changed == HEADS | {"pos_embed"}
    averaged = weights(folder, "model_ema")
    assert all(averaged[name].equal(after[name]) for name in after.keys() - HEADS)
    newest = sorted(RunFolder(folder).checkpoints.iterdir())[-1]
    assert weights(newest, "exp_avg").keys() == HEADS
    assert replay_command([str(folder), "--step", "2"]) == 0
    # a finished run answers its command without the weights that it began with
    shutil.rmtree(start)
    assert train(argv) == 0
    assert train([*argv, "--lr", "0.01"]) == 2


def test_other_weights_cannot_train_from_a_checkpoint(
    setting: Setting, start: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    checkpoint = sorted(RunFolder(start).checkpoints.iterdir())[-1]
    flags = ["--resume", str(checkpoint), "--trainable", "heads"]
    assert setting.train(tmp_path / "run", *setting.taught, *flags, epochs=3) == 2
    said = capfd.readouterr().err
    assert f"--trainable must be all as in {start}; --finetune {checkpoint} begins with" in said
    assert not (tmp_path / "run").exists()
    argv = command(setting, checkpoint, tmp_path / "run", "--trainable", "heads")
    assert train([*argv, "--stop-after-steps", "1"]) == 0


def test_another_data_set_gets_new_heads_with_the_recipe(
    setting: Setting, start: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = write_shapes(tmp_path / "data", train=8)
    for split in ("train", "val"):
        for number, folder in enumerate(sorted((data / split).iterdir())):
            folder.rename(folder.with_name(f"other{number}"))
    argv = ["--recipe", "transfer", "--data-path", str(data), "--finetune", str(start)]
    argv += ["--input-size", "32", "--batch-size", "8", "--epochs", "1"]
    assert train([*argv, "--layer-decay", "0.7", "--output-dir", str(tmp_path / "run")]) == 0
    said = " ".join(capfd.readouterr().out.split())
    assert "head left as initialised: the file is for other classes, without other0" in said
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["label_names"] == ["other0", "other1", "other2"]
