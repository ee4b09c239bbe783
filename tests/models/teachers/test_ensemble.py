"""Several teachers as one: the mean of their logits, each with its own view."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from fastdeit.models.teachers.ensemble import Ensemble, LiveTeacher, load_teachers
from fastdeit.models.teachers.identity import identify_files
from fastdeit.models.teachers.teacher import Teacher
from fastdeit.models.teachers.view import Preprocessing

MEAN = (0.5, 0.4, 0.3)
STD = (0.2, 0.25, 0.3)
CLASSES = ("cat", "dog", "eel")
VIEWS: list[dict[str, Any]] = [
    {"mean": MEAN, "std": STD, "input_size": 32},
    {"mean": (0.1,) * 3, "std": (0.4,) * 3, "input_size": 48},
]


def save_teacher(path: Path, seed: int, view: dict[str, Any], **metadata: Any) -> nn.Module:
    torch.manual_seed(seed)
    model = timm.create_model("test_resnet", num_classes=len(CLASSES)).eval()
    texts = {name: json.dumps(value) for name, value in (view | metadata).items()}
    save_file(model.state_dict(), path, texts)
    return model


@pytest.fixture
def models(tmp_path: Path) -> list[nn.Module]:
    files = enumerate(zip("ab", VIEWS, strict=True))
    return [
        save_teacher(tmp_path / f"{name}.safetensors", seed, view) for seed, (name, view) in files
    ]


def load(folder: Path, names: str, **changes: Any) -> LiveTeacher:
    sources = [("test_resnet", str(folder / f"{name}.safetensors")) for name in names]
    student = Preprocessing(MEAN, STD, 32)
    setting: dict[str, Any] = {"device": "cpu", "dtype": torch.float32, "student": student}
    return load_teachers(sources, num_classes=3, classes=CLASSES, **setting | changes)


def test_logits_are_the_mean_each_with_its_own_view(
    models: list[nn.Module], tmp_path: Path
) -> None:
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (MEAN, STD))
    larger = F.interpolate(images, size=(48, 48), mode="bicubic", antialias=True)
    with torch.no_grad():
        first = models[0](images)
        second = models[1]((larger * std + mean - 0.1) / 0.4)
    logits = load(tmp_path, "ab")(images)
    torch.testing.assert_close(logits, (first + second) / 2, rtol=1e-4, atol=1e-4)
    assert not logits.requires_grad and not torch.allclose(first, second)


class Fixed:
    """A teacher that returns the same tensor again."""

    name = "fixed"
    num_classes = 3
    device = torch.device("cpu")
    dtype = torch.float32
    precision = "float32"

    def __init__(self, logits: torch.Tensor) -> None:
        self.logits = logits

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return self.logits


def test_outputs_of_a_teacher_are_not_changed() -> None:
    teachers: list[Any] = [Fixed(torch.ones(2, 3)), Fixed(torch.full((2, 3), 3.0))]
    ensemble = Ensemble(teachers)
    for _ in range(2):
        assert torch.equal(ensemble(torch.zeros(2, 3, 8, 8)), torch.full((2, 3), 2.0))


@pytest.mark.usefixtures("models")
def test_one_source_is_a_plain_teacher(tmp_path: Path) -> None:
    assert isinstance(load(tmp_path, "a"), Teacher)


@pytest.mark.usefixtures("models")
def test_identity_has_every_teacher_in_order(tmp_path: Path) -> None:
    identity = load(tmp_path, "ab").identity()
    alone = [load(tmp_path, name).identity() for name in "ab"]
    assert identity == {key: [one[key] for one in alone] for key in alone[0]}
    assert identity != load(tmp_path, "ba").identity()
    assert json.loads(json.dumps(identity)) == identity
    files = identify_files([("test_resnet", tmp_path / f"{name}.safetensors") for name in "ab"])
    assert files == {"weights": identity["weights"]}


@pytest.mark.usefixtures("models")
def test_flags_of_the_view_hold_for_all(tmp_path: Path) -> None:
    identity = load(tmp_path, "ab", asked={"input_size": 40}).identity()
    assert identity["input_size"] == [40, 40] and identity["mean"][0] != identity["mean"][1]


@pytest.mark.usefixtures("models")
def test_description_names_every_teacher_in_one_line(tmp_path: Path) -> None:
    ensemble = load(tmp_path, "ab")
    said = ensemble.describe()
    assert said.startswith("the mean of 2: test_resnet: ") and "\n" not in said
    assert all(weights[:12] in said for weights in ensemble.identity()["weights"])
    assert "32 px" in ensemble.describe_view() and "48 px" in ensemble.describe_view()


@pytest.mark.usefixtures("models")
@pytest.mark.parametrize("names", ["ac", "ca"])
def test_teacher_of_other_classes_is_refused_by_its_path(names: str, tmp_path: Path) -> None:
    save_teacher(tmp_path / "c.safetensors", 2, VIEWS[0], classes=("cat", "dog", "fox"))
    with pytest.raises(ValueError, match=r"--teacher-path must be .* \(got .*/c\.[a-z]+, which na"):
        load(tmp_path, names)


def test_memory_is_that_of_all_weights_and_of_the_largest_activations(
    models: list[nn.Module], tmp_path: Path
) -> None:
    ensemble = load(tmp_path, "ab")
    assert isinstance(ensemble, Ensemble)
    small, large = (teacher.measure_memory(4) for teacher in ensemble.teachers)
    assert small.activations and large.activations and small.activations < large.activations
    assert ensemble.measure_memory(4) == (small.weights + large.weights, large.activations)
