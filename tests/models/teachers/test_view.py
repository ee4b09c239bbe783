"""The view of a teacher: its own mean, std and size, for every kind of teacher and every source."""

import json
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from fastdeit.config.parse import MAX_TEACHER_SIZE
from fastdeit.config.schema import Config
from fastdeit.models.student import Student
from fastdeit.models.teachers.teacher import Teacher, load_teacher
from fastdeit.models.teachers.view import MAX_BYTES, Preprocessing

STUDENT = Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 32)
MEAN = (0.5, 0.45, 0.4)
STD = (0.5, 0.25, 0.3)
CFG = {"mean": MEAN, "std": STD, "input_size": (3, 48, 48), "interpolation": "bilinear"}
CLASSES = 6
TIMM = "test_resnet"


def load(name: str | None, path: Path | None, **asked: Any) -> Teacher:
    return load_teacher(
        name,
        path,
        num_classes=CLASSES,
        device="cpu",
        dtype=torch.float32,
        student=STUDENT,
        asked=asked,
    )


def make_network(size: int = 48) -> nn.Module:
    """Return a network that works with images of one size only."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(2),
        nn.Linear(size * size, 4),
        nn.Flatten(),
        nn.Linear(12, CLASSES),
    ).eval()


def assert_sees(teacher: Teacher, network: nn.Module, view: Preprocessing) -> None:
    """The teacher gives what the network gives for the stored pixels in its own form."""
    pixels = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    def normalise(images: torch.Tensor, view: Preprocessing) -> torch.Tensor:
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (view.mean, view.std))
        return (images - mean) / std

    resized = F.interpolate(pixels, size=[view.size] * 2, mode="bicubic", antialias=True)
    with torch.no_grad():
        expected = network(normalise(resized, view))
    found = teacher(normalise(pixels, STUDENT))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def save_script(model: nn.Module, path: Path, extra: dict[str, str]) -> None:
    torch.jit.script(model).save(path, _extra_files=extra)


def save_export(model: nn.Module, path: Path, extra: dict[str, str], size: int = 48) -> None:
    batch = torch.export.Dim("batch", min=2)
    images = torch.zeros(2, 3, size, size)
    program = torch.export.export(model, (images,), dynamic_shapes=({0: batch},))
    torch.export.save(program, path, extra_files=extra)


Save = Callable[..., None]
# torch.export.load of torch 2.11
kinds = pytest.mark.parametrize(
    ("kind", "save"), [("torchscript", save_script), ("export", save_export)]
)
quiet = pytest.mark.filterwarnings("ignore:The given buffer is not writable")
own = Preprocessing(MEAN, STD, 48)


@quiet
@kinds
@pytest.mark.parametrize("name", ["config.json", "pretrained_cfg.json"])
def test_extra_files_of_an_archive_name_the_view(
    kind: str, save: Save, name: str, tmp_path: Path
) -> None:
    content = CFG if name == "pretrained_cfg.json" else {"pretrained_cfg": CFG, "mean": "other"}
    network = make_network()
    save(network, tmp_path / "teacher.pt", {name: json.dumps(content)})
    teacher = load(kind, tmp_path / "teacher.pt")
    assert teacher.preprocessing == own
    assert_sees(teacher, network, own)
    assert teacher.describe_view().endswith(f"input_size from {tmp_path / 'teacher.pt'}: {name}")


@quiet
@kinds
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_json_beside_an_archive_names_the_view(
    kind: str, save: Save, mark: bytes, tmp_path: Path
) -> None:
    network = make_network()
    save(network, tmp_path / "teacher.pt", {})
    (tmp_path / "teacher.json").write_bytes(mark + json.dumps(CFG).encode())
    assert_sees(load(kind, tmp_path / "teacher.pt"), network, own)


@quiet
@kinds
def test_flags_win_and_may_name_a_part(kind: str, save: Save, tmp_path: Path) -> None:
    network = make_network()
    save(network, tmp_path / "teacher.pt", {"config.json": json.dumps(CFG | {"std": None})})
    teacher = load(kind, tmp_path / "teacher.pt", mean=(0.1, 0.2, 0.3))
    assert_sees(teacher, network, Preprocessing((0.1, 0.2, 0.3), STUDENT.std, 48))
    said = teacher.describe_view()
    assert "mean from the flags" in said and "input_size from " in said
    assert "std from the student: assumed" in said and "(--teacher-std)" in said


def test_without_any_source_the_student_is_assumed_and_said(tmp_path: Path) -> None:
    network = make_network(32)
    save_script(network, tmp_path / "teacher.pt", {})
    teacher = load("torchscript", tmp_path / "teacher.pt")
    assert_sees(teacher, network, STUDENT)
    assert teacher.describe_view() == (
        "mean 0.485 0.456 0.406, std 0.229 0.224 0.225, 32 px; mean, std and input_size from "
        "the student: assumed, as nothing names the teacher's own "
        "(--teacher-mean --teacher-std --teacher-input-size)"
    )


CALLABLES = f"""
import timm, torch
from timm.models import PretrainedCfg

torch.manual_seed(0)
cfg = {CFG!r}
network = torch.nn.Sequential(
    torch.nn.Flatten(2), torch.nn.Linear(48 * 48, 4), torch.nn.Flatten(), torch.nn.Linear(12, 6)
).eval()

def classify(images):
    return network(images)

classify.default_cfg = PretrainedCfg(**cfg)

def make():
    made = torch.nn.Sequential(network)
    made.pretrained_cfg = cfg
    return made

def make_bare():
    return torch.nn.Sequential(network)

make_bare.pretrained_cfg = cfg

class Callable:
    default_cfg = {{name: torch.tensor(cfg[name]) for name in ("mean", "std", "input_size")}}
    def __call__(self, images):
        return network(images)

instance = Callable()
"""


@pytest.mark.parametrize("thing", ["classify", "make", "make_bare", "instance", "Callable", "bare"])
def test_pretrained_cfg_of_a_callable_names_the_view(
    thing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the network, of what makes it, or of the module."""
    text = CALLABLES + "\nbare = network\npretrained_cfg = cfg\n" if thing == "bare" else CALLABLES
    (tmp_path / "viewed_teacher.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "viewed_teacher", raising=False)
    teacher = load(f"viewed_teacher:{thing}", None)
    assert teacher.preprocessing.size == 48
    assert teacher.preprocessing.mean == pytest.approx(MEAN)
    assert_sees(teacher, sys.modules["viewed_teacher"].network, own)
    assert f"from viewed_teacher{'' if thing == 'bare' else ':' + thing}." in (
        teacher.describe_view()
    )


def test_timm_weights_take_the_view_of_the_file_beside_them(tmp_path: Path) -> None:
    """As the Hub's folders have it; one with another name must be the weights' own."""
    network = timm.create_model(TIMM, num_classes=CLASSES).eval()
    config = {"architecture": TIMM, "pretrained_cfg": CFG}
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert_sees(load(TIMM, tmp_path / "model.safetensors"), network, own)
    save_file(network.state_dict(), tmp_path / "other.safetensors")
    assert load(TIMM, tmp_path / "other.safetensors").preprocessing.size == 160
    (tmp_path / "other.json").write_text(json.dumps(config))
    assert load(TIMM, tmp_path / "other.safetensors").preprocessing == own
    # what the file itself says cannot be another file's
    size = {"input_size": "40"}
    save_file(network.state_dict(), tmp_path / "other.safetensors", metadata=size)
    assert load(TIMM, tmp_path / "other.safetensors").preprocessing == own._replace(size=40)


def test_deit_teacher_is_resized_to_the_asked_size(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 3}
    student = Student(image_size=32, num_classes=CLASSES, **sizes).eval()
    metadata = {"model": "deit_tiny_distilled_patch16_224", "num_heads": "3"}
    save_file(student.state_dict(), tmp_path / "model.safetensors", metadata=metadata)
    images = torch.zeros(2, 3, 32, 32)
    teacher = load("", tmp_path / "model.safetensors", input_size=64)
    assert teacher.preprocessing.size == 64 and teacher(images).shape == (2, CLASSES)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"mean": [0.5, 0.5]}, "mean must be three numbers from 0 to 1"),
        ({"mean": [0.5, 0.5, 1.5]}, "mean must be three numbers from 0 to 1"),
        ({"mean": ["0.5", 0.5, 0.5]}, "mean must be three numbers"),
        ({"mean": [float("nan"), 0.5, 0.5]}, "mean must be three numbers"),
        ({"mean": {"a": 1}}, "mean must be three numbers"),
        ({"std": [0, 0.5, 0.5]}, "std must be three numbers from above 0 to 1"),
        ({"input_size": [3, 48, 64]}, r"input_size must be 1 to 2048 pixels, or \[3, side, side\]"),
        ({"input_size": 48.0}, "input_size must be"),
        ({"input_size": [[], {}, []]}, "input_size must be"),
        ({"input_size": True}, "input_size must be"),
        ({"input_size": 2049}, "input_size must be"),
        ({"input_size": []}, "input_size must be"),
    ],
)
def test_values_that_no_network_has_fail(content: dict, words: str, tmp_path: Path) -> None:
    save_script(make_network(), tmp_path / "a.pt", {"config.json": json.dumps(content)})
    with pytest.raises(ValueError, match=f"a.pt: config.json: the teacher's {words}") as caught:
        load("torchscript", tmp_path / "a.pt")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "\x00", "NaN,", '{"a": 1} {"b": 2}'])
def test_file_that_is_no_json_fails(text: str, tmp_path: Path) -> None:
    save_script(make_network(32), tmp_path / "teacher.pt", {})
    (tmp_path / "teacher.json").write_text(text)
    with pytest.raises(ValueError, match="teacher.json must be JSON") as caught:
        load("torchscript", tmp_path / "teacher.pt")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


@pytest.mark.parametrize("content", ["[1, 2]", "3", '"mean"', "{}", '{"pretrained_cfg": 3}'])
def test_json_without_a_view_is_ignored(content: str, tmp_path: Path) -> None:
    save_script(make_network(32), tmp_path / "teacher.pt", {})
    (tmp_path / "teacher.json").write_text(content)
    assert load("torchscript", tmp_path / "teacher.pt").preprocessing == STUDENT


def test_long_files_are_refused_unread(tmp_path: Path) -> None:
    """Also a compressed one, of which a few bytes make many."""
    save_script(make_network(32), tmp_path / "teacher.pt", {})
    (tmp_path / "teacher.json").write_text(" " * (MAX_BYTES + 1))
    with pytest.raises(ValueError, match="teacher.json: must be at most"):
        load("torchscript", tmp_path / "teacher.pt")
    with zipfile.ZipFile(tmp_path / "teacher.pt", "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("teacher/extra/config.json", " " * (20 * MAX_BYTES))
    with pytest.raises(ValueError, match=r"teacher.pt: config.json must be at most"):
        load("torchscript", tmp_path / "teacher.pt")


def test_flags_have_the_limits_of_files() -> None:
    largest = {
        "teacher_mean": (0, 0, 1),
        "teacher_std": (1, 1, 1),
        "teacher_input_size": MAX_TEACHER_SIZE,
    }
    Config().replace(distill=largest)
    for name, value, words in (
        ("input_size", MAX_TEACHER_SIZE + 1, "1 to 2048 pixels"),
        ("mean", (0.5, 1.5, 0.5), "three numbers from 0 to 1"),
        ("std", (0.5, 0, 0.5), "three numbers above 0, at most 1"),
    ):
        flag = f"--teacher-{name.replace('_', '-')}"
        with pytest.raises(ValueError, match=f"{flag} must be {words}"):
            Config().replace(distill={f"teacher_{name}": value})
