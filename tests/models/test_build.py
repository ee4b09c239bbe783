"""`--finetune`: heads are used only for the classes that they were trained for."""

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from fastdeit.config.schema import Config
from fastdeit.models.build import build_model
from fastdeit.models.hub import read_class_names
from fastdeit.models.teachers.teacher import load_teacher
from fastdeit.models.teachers.view import Preprocessing

CLASSES = ("cat", "dog", "eel")
OTHERS = ("cat", "fox", "gnu")
STUDENT = {
    "model": "deit_tiny_distilled_patch16_224",
    "patch_size": 8,
    "embed_dim": 32,
    "depth": 1,
    "num_heads": 2,
}
MODELS: dict[str, tuple[dict[str, object], tuple[str, ...]]] = {
    "student": (STUDENT, ("head", "head_dist")),
    "timm model": ({"model": "test_resnet"}, ("fc",)),
}


@pytest.fixture(params=MODELS)
def heads(request: pytest.FixtureRequest) -> tuple[str, ...]:
    return MODELS[request.param][1]


@pytest.fixture
def config(heads: tuple[str, ...]) -> Config:
    (model,) = (model for model, named in MODELS.values() if named == heads)
    data = {"input_size": 32}
    return Config().replace(model=model, data=data, distill={"distillation_type": "none"})


def perturb(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return other weights for a model, as after a training."""
    generator = torch.Generator().manual_seed(5)
    state = model.state_dict()
    return {
        key: torch.randn(value.shape, generator=generator) if value.is_floating_point() else value
        for key, value in state.items()
    }


def finetune(
    config: Config, path: Path, trained: tuple[str, ...] | None, classes: tuple[str, ...]
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], list[str]]:
    """Write trained weights to `path`, with the names of their classes; return them, those of the
    model that is built from them, and its notes."""
    state = perturb(build_model(config, trained or CLASSES)[0])
    save_file(state, path, {} if trained is None else {"classes": json.dumps(trained)})
    model, notes = build_model(config.replace(model={"finetune": str(path)}), classes)
    return state, model.state_dict(), notes


def differing(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> set[str]:
    return {key for key, value in one.items() if not torch.equal(value, other[key])}


def parts(heads: tuple[str, ...]) -> set[str]:
    return {f"{head}.{part}" for head in heads for part in ("weight", "bias")}


def test_heads_of_the_same_classes_are_used(config: Config, tmp_path: Path) -> None:
    state, own, notes = finetune(config, tmp_path / "w.safetensors", CLASSES, CLASSES)
    assert notes == [] and not differing(state, own)


@pytest.mark.parametrize("trained", [OTHERS, (*CLASSES, "fox")], ids=["others", "more"])
def test_heads_of_other_classes_are_as_built(
    config: Config, heads: tuple[str, ...], trained: tuple[str, ...], tmp_path: Path
) -> None:
    state, own, notes = finetune(config, tmp_path / "w.safetensors", trained, CLASSES)
    assert len(notes) == len(heads) and all("left as initialised" in note for note in notes)
    if trained == OTHERS:
        assert "without dog, eel" in notes[0]
    fresh = build_model(config, CLASSES)[0].state_dict()
    assert parts(heads) <= state.keys()
    assert all(torch.equal(own[key], fresh[key]) for key in parts(heads))
    rest = {key: value for key, value in state.items() if key not in parts(heads)}
    assert len(rest) > 10 and not differing(rest, own)


def test_rows_follow_the_order_of_the_classes(
    config: Config, heads: tuple[str, ...], tmp_path: Path
) -> None:
    trained = ("eel", "cat", "dog")
    state, own, notes = finetune(config, tmp_path / "w.safetensors", trained, CLASSES)
    assert len(notes) == len(heads) and all("rows sorted" in note for note in notes)
    assert differing(state, own) == parts(heads)
    for key in parts(heads):
        for name in CLASSES:
            assert torch.equal(own[key][CLASSES.index(name)], state[key][trained.index(name)])


def test_heads_without_names_of_classes_are_used_with_a_note(
    config: Config, heads: tuple[str, ...], tmp_path: Path
) -> None:
    state, own, notes = finetune(config, tmp_path / "w.safetensors", None, CLASSES)
    assert [note.partition(" ")[0] for note in notes] == list(heads)
    assert all("does not name them" in note for note in notes) and not differing(state, own)


def test_names_beside_the_weights_count(
    config: Config, heads: tuple[str, ...], tmp_path: Path
) -> None:
    """As in a folder of the Hugging Face Hub."""
    path = tmp_path / "model.safetensors"
    (tmp_path / "config.json").write_text(json.dumps({"label_names": OTHERS}))
    _, _, notes = finetune(config, path, None, CLASSES)
    assert len(notes) == len(heads) and "without dog, eel" in notes[0]


def test_teacher_of_other_classes_beside_the_weights_has_their_names(tmp_path: Path) -> None:
    """build_teacher compares them with those of the data set."""
    model = build_model(Config().replace(model={"model": "test_resnet"}), CLASSES)[0]
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"label_names": OTHERS}))
    teacher = load_teacher(
        "test_resnet",
        tmp_path,
        num_classes=3,
        device="cpu",
        dtype=torch.float32,
        student=Preprocessing((0.5,) * 3, (0.5,) * 3, 32),
    )
    assert teacher.classes == OTHERS


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ({"label_names": ["a", "b"]}, ("a", "b")),
        ({"pretrained_cfg": {"label_names": ["a"]}}, ("a",)),
        ({"labels": ["a", "b"]}, ("a", "b")),
        ({"label_names": {"1": "b", "0": "a"}}, ("a", "b")),
        ({"pretrained_cfg": None}, None),
        ({}, None),
        (["a", "b"], None),
    ],
)
def test_forms_of_config_json(
    content: object, names: tuple[str, ...] | None, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert read_class_names(tmp_path / "model.safetensors", {}) == names
    assert read_class_names(tmp_path / "other.safetensors", {}) is None
    assert read_class_names(tmp_path / "model.safetensors", {"classes": '["x"]'}) == ("x",)


@pytest.mark.parametrize(
    "text",
    ['{"label_names": 3}', '{"label_names": [1]}', '{"label_names": {"2": "a"}}', "{", "[" * 9999],
)
def test_harmful_config_json_is_refused_in_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json") as caught:
        read_class_names(tmp_path / "model.safetensors", {})
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_names_that_are_not_those_of_the_head_are_not_trusted(tmp_path: Path) -> None:
    alone = {"distillation_type": "none"}
    config = Config().replace(model={"model": "test_resnet"}, distill=alone)
    state = build_model(config, CLASSES)[0].state_dict()
    path = tmp_path / "w.safetensors"
    save_file(state, path, {"classes": json.dumps([*CLASSES, "fox"])})
    _, notes = build_model(config.replace(model={"finetune": str(path)}), CLASSES)
    assert notes == ["fc left as initialised: the file names 4 classes, and its head has 3"]


def build(name: str, kind: str, size: int = 32) -> tuple[nn.Module, list[str]]:
    config = Config().replace(
        model={"model": name}, data={"input_size": size}, distill={"distillation_type": kind}
    )
    return build_model(config, CLASSES)


def test_one_head_for_both_losses_is_noted() -> None:
    said = "has one head, trained by the labels and the teacher"
    assert build("test_resnet", "hard")[1] == [f"test_resnet {said}"]
    plain = "deit_tiny_patch16_224"
    twin = "deit_tiny_distilled_patch16_224 has one for each"
    assert build(plain, "soft")[1] == [f"{plain} {said}; {twin}"]
    assert not build(plain, "none")[1] and not build("test_resnet", "none")[1]
    assert not build("deit_tiny_distilled_patch16_224", "hard")[1]


def test_two_heads_of_a_timm_model_train_apart() -> None:
    images = torch.zeros(2, 3, 224, 224)
    model, notes = build("levit_128s", "hard", 224)
    assert not notes and [out.shape for out in model(images)] == [(2, 3), (2, 3)]
    model, notes = build("levit_128s", "none", 224)
    assert not notes and model(images).shape == (2, 3)


def test_model_without_drop_path_is_built_with_a_note() -> None:
    model, notes = build("repghostnet_050", "none")
    assert notes == ["repghostnet_050 has no DropPath: --drop-path 0.1 has no effect"]
    torch.manual_seed(Config().run.seed)
    plain = timm.create_model("repghostnet_050", num_classes=3).state_dict()
    assert not differing(plain, model.state_dict())


def test_model_that_cannot_be_trained_is_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match=r"--model must be a model that runs on images of 200 px"):
        build("bat_resnext26ts", "none", 200)


def test_a_vit_of_timm_is_resized_as_timm_does(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    config = Config().replace(
        model={"model": "test_vit"},
        data={"input_size": 64},
        distill={"distillation_type": "none"},
    )
    large = config.replace(data={"input_size": 96}, model={"finetune": str(path)})
    state = perturb(build_model(config, CLASSES)[0])
    save_file(state, path, {"classes": json.dumps(CLASSES)})
    model, notes = build_model(large, CLASSES)
    assert notes == ["pos_embed resized from (1, 17, 64) to (1, 37, 64)"]
    theirs = timm.create_model("test_vit", num_classes=3, img_size=64)
    theirs.load_state_dict(state)
    theirs.set_input_size(96)
    images = torch.randn(2, 3, 96, 96)
    torch.testing.assert_close(model.eval()(images), theirs.eval()(images))
    with pytest.raises(ValueError, match="does not fit") as refused:
        build_model(large.replace(model={"model": "test_resnet"}), CLASSES)
    assert "\n" not in str(refused.value)
