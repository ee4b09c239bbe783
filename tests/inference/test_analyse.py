"""The analysis of a checkpoint against plain timm: hooks, and the answers of both heads."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file

from fastdeit.inference.analyse import analyse_checkpoint
from fastdeit.storage.run_folder import RunFolder
from tests.support.images import CLASSES, write_shapes
from tests.support.plain_timm import load_images
from tests.support.trained import write_student


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("analyse") / "data", train=1, val=7)


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_student(tmp_path_factory.mktemp("student") / "run", CLASSES)


@torch.no_grad()
def run_timm(student: Path, data: Path) -> tuple[list[float], dict[str, np.ndarray]]:
    """Return the mean cosine of both tokens at each place, and the answers of each head, from plain
    timm on all images."""
    model: Any = timm.create_model(f"local-dir:{student}", pretrained=True).eval()
    images, labels = load_images(model, data / "val")
    seen: list[torch.Tensor] = []
    model.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    for module in [*model.blocks, model.norm]:
        module.register_forward_hook(lambda _, __, out: seen.append(out))
    both = model(images)
    cls, dist = model.head(seen[-1][:, 0]), model.head_dist(seen[-1][:, 1])
    torch.testing.assert_close(both, (cls + dist) / 2)
    cosines = [float(F.cosine_similarity(x[:, 0], x[:, 1], dim=-1).mean()) for x in seen]
    answers = {"labels": labels, "cls": cls.argmax(1), "dist": dist.argmax(1)}
    return cosines, {name: value.numpy() for name, value in answers.items()}


def test_tokens_and_answers_are_those_of_plain_timm(student: Path, data: Path) -> None:
    found = analyse_checkpoint(student, data, images=0)
    cosines, answers = run_timm(student, data)
    assert found["images"] == 21 and found["notes"] == []
    assert [layer["mean"] for layer in found["tokens"]["layers"]] == pytest.approx(
        cosines, abs=1e-5
    )
    between = found["disagreement"]
    assert list(between["names"]) == ["labels", "model/cls", "model/dist", "model/both"]
    for one, other, row, column in (("labels", "cls", 0, 1), ("cls", "dist", 1, 2)):
        share = 100 * float((answers[one] != answers[other]).mean())
        assert share > 0 and between["percent"][row][column] == pytest.approx(share)
    json.dumps(found)


def test_some_images_are_spread_over_the_classes(student: Path, data: Path) -> None:
    found = analyse_checkpoint(student, data, images=3)
    whole = analyse_checkpoint(student, data, images=21)
    assert found["images"] == 3 and found["disagreement"]["images"] == 3
    assert found["tokens"]["layers"][0] == whole["tokens"]["layers"][0]
    assert found["tokens"]["layers"][1] != whole["tokens"]["layers"][1]


def test_another_checkpoint_is_compared_by_the_names_of_its_classes(
    student: Path, data: Path, tmp_path: Path
) -> None:
    """The same model with its classes in another order gives the same answers."""
    other = write_student(tmp_path / "other", CLASSES[::-1])
    state = load_file(RunFolder(student).model)
    for name in ("head", "head_dist"):
        for part in ("weight", "bias"):
            state[f"{name}.{part}"] = state[f"{name}.{part}"].flip(0)
    save_file(state, RunFolder(other).model, metadata={"model": "deit_tiny_distilled_patch16_224"})
    found = analyse_checkpoint(student, data, images=0, other=other)["disagreement"]
    assert tuple(found["names"][-3:]) == ("other/cls", "other/dist", "other/both")
    for head in (1, 2, 3):
        assert found["percent"][head][head + 3] == 0


def test_a_class_map_names_the_right_answers(student: Path, data: Path, tmp_path: Path) -> None:
    renamed = write_student(tmp_path / "renamed", ("one", "two", "three"))
    found = analyse_checkpoint(renamed, data, images=0, class_map="position")
    assert found["disagreement"] == analyse_checkpoint(student, data, images=0)["disagreement"]


def test_a_teacher_is_one_of_the_classifiers(student: Path, data: Path, tmp_path: Path) -> None:
    teacher = write_student(tmp_path / "teacher", CLASSES, seed=5, distilled=False)
    found = analyse_checkpoint(student, data, images=0, teacher_path=str(teacher))["disagreement"]
    alone = analyse_checkpoint(teacher, data, images=0)["disagreement"]
    assert found["names"][-1] == "teacher/both"
    assert found["percent"][0][-1] == alone["percent"][0][1]


def test_classes_that_do_not_match_leave_the_tokens(student: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "val" / "else"
    folder.mkdir(parents=True)
    Image.new("RGB", (40, 40)).save(folder / "0.png")
    found = analyse_checkpoint(student, tmp_path / "data")
    assert found["disagreement"] is None and "class_map" in found["answers"].replace("-", "_")
    assert found["tokens"] and found["distance"]


@pytest.mark.parametrize(
    ("name", "arguments", "has_distance"),
    [
        ("test_resnet", {}, False),
        ("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8, "depth": 1}, True),
        ("vit_tiny_patch16_224", {"depth": 1, "img_size": 32, "global_pool": "avg"}, True),
    ],
    ids=["convnet", "vit", "mean of patches"],
)
def test_models_without_a_distillation_token_show_what_they_have(
    data: Path, tmp_path: Path, name: str, arguments: dict[str, Any], has_distance: bool
) -> None:
    model = timm.create_model(name, num_classes=3, **arguments)
    folder = tmp_path / "model"
    timm.models.save_for_hf(model, folder, model_args=arguments or None)
    found = analyse_checkpoint(folder, data, images=4)
    assert found["tokens"] is None and (found["distance"] is not None) is has_distance
    assert len(found["disagreement"]["names"]) == 2
    assert any("no distillation token" in note for note in found["notes"])
    assert any("no attention" in note for note in found["notes"]) is not has_distance


def test_a_number_of_images_below_zero_is_refused(student: Path, data: Path) -> None:
    with pytest.raises(ValueError, match="images must be 0 or more"):
        analyse_checkpoint(student, data, images=-1)
