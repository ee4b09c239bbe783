"""The model card: the Hub's header, what is known of the training, and code that runs."""

import os
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from sklearn.datasets import load_sample_images

from fastdeit.config.recipes import find_recipe
from fastdeit.config.schema import Config
from fastdeit.export.build import build_origin
from fastdeit.export.card import write_card
from fastdeit.export.folder import export_folder
from fastdeit.inference.load import LoadedModel, load_model
from fastdeit.storage.jsonl import append_lines
from fastdeit.storage.run_folder import RunFolder
from tests.support.images import CLASSES
from tests.support.trained import VIEW, write_student

SCORES = {
    "model/both/top1": 71.25,
    "model/both/top5": 91.5,
    "model/cls/top1": 70.0,
    "model/cls/top5": 90.0,
    "model/dist/top1": 72.0,
    "model/dist/top5": 92.0,
}


def write_run(path: Path, config: Config) -> RunFolder:
    """Write what a card reads of a run: its settings, and its log up to step 20."""
    folder = RunFolder(write_student(path, CLASSES))
    seen = {"input_size": VIEW.size, "mean": VIEW.mean, "std": VIEW.std}
    config = config.replace(data=seen | {"eval_crop_ratio": VIEW.crop_pct})
    folder.config.write_text(yaml.safe_dump(config.to_dict()))
    lines = [
        {"step": 10, "model/both/top1": 1.0, "ema/both/top1": 2.0},
        {"step": 20, "loss": 0.1},
        {"step": 20, **SCORES, "model/both/agreement": 3.0, "ema/both/top1": 44.0},
    ]
    append_lines(folder.metrics, lines)
    return folder


def load(folder: RunFolder, step: int) -> LoadedModel:
    loaded = load_model(folder.path)
    return LoadedModel(**{**vars(loaded), "metadata": loaded.metadata | {"step": str(step)}})


def test_the_header_is_the_hubs_with_the_accuracy(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", find_recipe("digits"))
    export_folder(load(folder, 20), tmp_path / "mine")
    card = ModelCard.load(tmp_path / "mine" / "README.md")
    assert card.data.library_name == "timm" and card.data.pipeline_tag == "image-classification"
    assert card.data.license is None and "## Licence" in card.text
    assert card.data.model_name == "mine"
    (first, second) = card.data.eval_results
    assert (first.metric_name, first.metric_value) == ("top-1", 71.25)
    assert (first.dataset_name, second.metric_name) == ("digits", "top-5")
    assert "| distillation head | 72.00 | 92.00 |" in card.text
    assert "--recipe digits" in card.text and "| Steps | 20 |" in card.text


def test_scores_are_those_of_just_these_weights(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run_of_ema", find_recipe("digits"))
    folder.model_ema_best.touch()
    checkpoint = folder.checkpoints / "step-10" / "model.safetensors"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    for source, ema, step, weights, expected in (
        (folder.path, False, "20", "model", {"both/top1": 71.25, "dist/top5": 92.0}),
        (folder.path, True, "20", "EMA", {"both/top1": 44.0}),
        (folder.model_ema_best, False, "10", "EMA", {"both/top1": 2.0}),
        (folder.model, False, "10", "model", {"both/top1": 1.0}),
        (checkpoint, False, "10", "model", {}),
        (folder.path, False, "15", "model", {}),
    ):
        origin = build_origin(str(source), ema, step, VIEW)
        assert origin is not None and expected.items() <= origin.scores.items()
        assert origin.settings["Weights"] == weights
        assert bool(origin.scores) == (step != "15")
        assert not [name for name in origin.scores if "agreement" in name]
    assert build_origin("hf-hub:timm/deit", False, "", VIEW) is None


def test_scores_of_another_view_are_not_those_of_the_export(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", find_recipe("digits"))
    for view in (VIEW._replace(crop_pct=1.0), VIEW._replace(interpolation="bilinear")):
        origin = build_origin(str(folder), False, "20", view)
        assert origin is not None and not origin.scores


def test_the_card_names_the_command_and_no_place_of_this_machine(tmp_path: Path) -> None:
    places: dict[str, Any] = {
        "data": {"data_path": "/home/me/images", "val_split": "/home/me/lists/val.csv"},
        "distill": {"teacher_path": "/home/me/teachers/regnet.pth", "teacher_model": "regnety_040"},
        "model": {"finetune": "local-dir:/home/me/deit"},
        "checkpoint": {"resume": "/home/me/runs/6/checkpoints/step-5"},
        "run": {"output_dir": "/home/me/runs/7"},
        "optim": {"epochs": 12},
    }
    config = find_recipe("deit_paper").replace(**places)
    folder = write_run(tmp_path / "run", config)
    origin = build_origin(str(folder), False, "7", VIEW)
    text = write_card(load(folder, 7), "mine", "fp32", origin)
    assert "--recipe deit_paper --data-path images --val-split val.csv" in text
    assert "--teacher-model regnety_040" in text and "--teacher-path regnet.pth" in text
    assert "--epochs 12" in text
    assert "/home" not in text and str(tmp_path) not in text
    assert "--finetune local-dir:deit" in text and "--resume step-5" in text
    assert "regnety\\_040, hard labels" in text and "## Results" not in text


def test_the_paths_of_several_teachers_stay_apart(tmp_path: Path) -> None:
    teachers = {"teacher_model": "regnety_040,resnet18", "teacher_path": '"/home/a,b",/home/c.pth'}
    folder = write_run(tmp_path / "run", find_recipe("deit").replace(distill=teachers))
    origin = build_origin(str(folder), False, "7", VIEW)
    assert origin is not None and "--teacher-path '\"a,b\",c.pth'" in origin.command


def test_names_from_outside_stay_names(tmp_path: Path) -> None:
    classes = ("a|b", "*c*", os.fsdecode(b"K\xe4se"), "x\n# y", *map(str, range(20)))
    loaded = load_model(write_student(tmp_path / "run", classes))
    text = write_card(loaded, "we: [name](x)", "bf16", None)
    assert r"24: a\|b, \*c\*, K\\xe4se, x\\n\# y, 0" in text and ", 15, ... |" in text
    assert "\n# we: \\[name\\](x)\n" in text and "trained with fastdeit" not in text
    assert ModelCard(text).data.to_dict()["library_name"] == "timm"


def test_the_code_of_the_card_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_model(write_student(tmp_path / "run", CLASSES))
    export_folder(loaded, tmp_path / "mine")
    text = (tmp_path / "mine" / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    Image.fromarray(load_sample_images().images[0]).save("photo.jpg")
    found: dict[str, object] = {}
    exec(code.replace("hf-hub:OWNER/mine", "local-dir:mine"), found)
    probabilities = found["probabilities"]
    assert isinstance(probabilities, torch.Tensor) and probabilities.shape == (1, 3)
    assert probabilities.sum().item() == pytest.approx(1)
    assert isinstance(found["timm"], type(timm))
