"""Runs whose teacher and start are named by an address, a repository or a timm model."""

import json
import shutil
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import constants

from fastdeit.config.schema import Config
from fastdeit.distributed.world import init_distributed
from fastdeit.models.sizes import SIZES
from fastdeit.models.sources import locate_weights
from fastdeit.models.student import build_student
from fastdeit.run import build
from fastdeit.run.inputs import read_inputs
from fastdeit.run.preflight import fetch_weight_files
from fastdeit.storage.file_hash import hash_file
from fastdeit.storage.run_folder import RunFolder
from tests.support.cache_runs import TEACHER, Setting, write_teacher
from tests.support.ranks import Ranks
from tests.support.servers import COMMIT, FileServer, fill_hub_cache, use_caches, use_hub

NAME = "deit_tiny_distilled_patch16_224"
OTHER_COMMIT = COMMIT[::-1]


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    init_distributed()
    return Setting(tmp_path_factory.mktemp("named"))


@pytest.fixture(scope="module")
def served(setting: Setting) -> Path:
    """The folder of a server: the start of a run, and the teacher as a repository."""
    folder = setting.root / "served"
    (folder / "me" / "teacher").mkdir(parents=True)
    sizes = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "image_size": 32}
    student = build_student(NAME, num_classes=3, **{**SIZES[NAME]._asdict(), **sizes})
    torch.save({"model": student.state_dict()}, folder / "start.pth")
    shutil.copy(setting.teacher, folder / "me" / "teacher" / "model.safetensors")
    described = {"architecture": TEACHER, "pretrained_cfg": {"input_size": [3, 32, 32]}}
    (folder / "me" / "teacher" / "config.json").write_text(json.dumps(described))
    return folder


def test_a_run_resumes_from_the_caches_and_refuses_another_revision(
    setting: Setting,
    served: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    cache = use_caches(monkeypatch, tmp_path)
    folder = RunFolder(tmp_path / "run")
    with FileServer(served).running() as server:
        use_hub(monkeypatch, server)
        # the architecture of the teacher is that of its config.json
        start = f"{server.address}/start.pth"
        flags = ["--teacher-model=", "--teacher-path", "hf-hub:me/teacher", "--finetune", start]
        assert setting.train(folder.path, *flags, "--stop-after-steps", "1") == 0
        assert server.asked.count("GET start.pth") == 1
    inputs = read_inputs(folder)
    assert inputs["finetune"] == {"path": start, "sha256": hash_file(served / "start.pth")}
    teacher = {key: inputs["teacher"][key] for key in ("name", "path", "file", "input_size")}
    assert teacher == {
        "name": TEACHER,
        "path": f"hf-hub:me/teacher@{COMMIT}",
        "file": hash_file(setting.teacher),
        "input_size": 32,
    }
    # the server is gone
    assert setting.train(folder.path, *flags, "--stop-after-steps", "1") == 0
    assert "resumed from" in capfd.readouterr().out

    monkeypatch.setattr(build, "build_data", None)  # no data is loaded from here on
    files = shutil.copytree(served / "me" / "teacher", tmp_path / "files")
    write_teacher(files / "model.safetensors", setting.data, seed=5)
    fill_hub_cache(cache, "me/teacher", files, OTHER_COMMIT)
    assert setting.train(folder.path, *flags) == 2
    error = capfd.readouterr().err
    assert f"with other files: --teacher-path: hf-hub:me/teacher@{COMMIT} (weights " in error
    assert f"now hf-hub:me/teacher@{OTHER_COMMIT} (weights " in error

    shutil.rmtree(cache)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # a server that is gone is asked again
    assert setting.train(folder.path, *flags) == 2
    error = capfd.readouterr().err.strip()
    assert "\n" not in error and "--teacher-path: hf-hub:me/teacher: not in the cache" in error
    assert "download model.safetensors and config.json from https://huggingface.co/me/tea" in error


def test_pretrained_weights_of_timm_teach(
    setting: Setting,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    cache = use_caches(monkeypatch, tmp_path)
    (tmp_path / "files").mkdir()
    shutil.copy(setting.teacher, tmp_path / "files" / "model.safetensors")
    repository = timm.get_pretrained_cfg(TEACHER).hf_hub_id
    fill_hub_cache(cache, repository, tmp_path / "files")
    folder = RunFolder(tmp_path / "run")
    flags = ["--teacher-model", TEACHER, "--pretrained-teacher", "--stop-after-steps", "1"]
    assert setting.train(folder.path, *flags) == 0
    teacher = read_inputs(folder)["teacher"]
    assert teacher["path"] == f"hf-hub:{repository}@{COMMIT}"
    assert f"the weights are {teacher['path']}" in capfd.readouterr().out
    # the same weights as a file
    assert setting.train(folder.path, *setting.taught, "--stop-after-steps", "1") == 0


def fetch(finetune: str) -> None:
    init_distributed()
    fetch_weight_files(
        Config().replace(model={"finetune": finetune}, distill={"distillation_type": "none"})
    )
    assert locate_weights(finetune).is_file()


def test_two_processes_of_a_machine_download_once(
    served: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_caches(monkeypatch, tmp_path)
    with FileServer(served).running() as server:
        ranks = Ranks(tmp_path / "log", fetch, f"{server.address}/start.pth")
        assert ranks.wait() == 0, ranks.output
        assert server.asked == ["GET start.pth"]
