"""An empty --model: the run has the model of --finetune, with its sizes."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from fastdeit.config.recipes import find_recipe
from fastdeit.config.schema import Config
from fastdeit.models.build import build_model, follow_weights, weight_metadata
from fastdeit.models.student import build_student

CLASSES = ("a", "b", "c")
ALONE = {"distillation_type": "none"}
TINY = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}


def write_run(path: Path, **model: Any) -> Config:
    """Write weights as a run does; return its settings."""
    config = Config().replace(data={"input_size": 32}, model=model, distill=ALONE)
    student = build_model(config, CLASSES)[0]
    save_file(student.state_dict(), path, weight_metadata(config, CLASSES, student))
    return config


def start_from(path: Path | str, **model: Any) -> Config:
    start = {"model": "", "finetune": str(path)} | model
    return Config().replace(data={"input_size": 64}, model=start, distill=ALONE)


@pytest.mark.parametrize(
    "model",
    [
        {"model": "deit_tiny_distilled_patch16_224", **TINY},
        {"model": "deit_base_patch16_224", **TINY, "qkv_bias": True, "registers": 2},
        {"model": "deit_small_patch16_224", **TINY, "init_values": 1e-4},
    ],
)
def test_name_and_sizes_are_those_of_the_run(model: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_run(path, **model)
    found = follow_weights(start_from(path))
    for name, value in model.items():
        assert getattr(found.model, name) == value, name
    assert found.data.input_size == 64
    (note,) = build_model(found, CLASSES)[1]
    assert note == "position embedding resized from 4 x 4 to 8 x 8 patches"


def test_a_size_that_is_set_stays(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_run(path, model="deit_tiny_distilled_patch16_224", **TINY)
    found = follow_weights(start_from(path, patch_size=16))
    assert found.model.patch_size == 16 and found.model.embed_dim == 24
    named = start_from(path, model="deit_tiny_patch16_224")
    assert follow_weights(named) is named


@pytest.mark.parametrize("name", ["deit_tiny_distilled_patch16_224", "deit_small_patch16_224"])
def test_deits_files_are_known_by_their_sizes(name: str, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pth"
    student = build_student(name, num_classes=3, qkv_bias=True)
    torch.save({"model": student.state_dict(), "epoch": 3}, path)
    model = follow_weights(start_from(path)).model
    assert model.model == name and model.qkv_bias
    assert (model.patch_size, model.embed_dim, model.depth, model.num_heads) == (None,) * 4


def test_a_run_of_a_timm_model_names_it(tmp_path: Path) -> None:
    config = write_run(tmp_path / "model.safetensors", model="test_resnet")
    assert follow_weights(start_from(tmp_path)).model.model == config.model.model


def test_weights_that_do_not_name_their_model_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(timm.create_model("test_resnet").state_dict(), path)
    with pytest.raises(ValueError, match="does not name its architecture: name it") as refused:
        follow_weights(start_from(path))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("path", ["", "no/such/file"])
def test_without_the_file_nothing_changes(path: str) -> None:
    config = find_recipe("finetune_384").replace(model={"finetune": path})
    assert follow_weights(config) is config


def test_another_mean_or_std_than_that_of_the_weights_is_a_note(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_run(path, model="deit_tiny_distilled_patch16_224", **TINY)
    same = follow_weights(start_from(path))
    assert len(build_model(same, CLASSES)[1]) == 1
    other = same.replace(data={"mean": (0.5, 0.5, 0.5)})
    assert build_model(other, CLASSES)[1][-1] == (
        "the weights were trained with --mean 0.485 0.456 0.406"
    )
    for std, expected in (([0.5, 0.5, 0.5], ["--std 0.5 0.5 0.5"]), ("x", []), ([1, 2], [])):
        content = {"pretrained_cfg": {"std": std}}
        (tmp_path / "config.json").write_text(json.dumps(content))
        notes = [note for note in build_model(same, CLASSES)[1] if "were trained" in note]
        assert notes == [f"the weights were trained with {flags}" for flags in expected]
