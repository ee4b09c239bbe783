"""Every kind of teacher, its preprocessing, and the errors of loading one."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from benchmarks.measuring.counting import StepCounter
from fastdeit.models.execution import compilation
from fastdeit.models.execution.compilation import run_uncompiled
from fastdeit.models.execution.folding import count_norms
from fastdeit.models.execution.form import Execution
from fastdeit.models.student import Student
from fastdeit.models.teachers.files import LoadedTeacher
from fastdeit.models.teachers.teacher import Teacher, load_teacher
from fastdeit.models.teachers.view import Preprocessing, View
from fastdeit.storage.tensor_files import hash_tensors
from tests.support.compiling import CountingBackend

MEAN = (0.5, 0.4, 0.3)
STD = (0.2, 0.25, 0.3)
SIZE = 32
CLASSES = 6
TIMM = "resnet10t"


def load(name: str | None, path: Path | None, **overrides: Any) -> Teacher:
    setting = {
        "num_classes": CLASSES,
        "device": "cpu",
        "dtype": torch.float32,
        "student": Preprocessing(MEAN, STD, SIZE),
    }
    return load_teacher(name, path, **{**setting, **overrides})


def make_images(batch: int = 3, size: int = SIZE) -> torch.Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))


def make_convnet() -> nn.Module:
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    ]
    return nn.Sequential(*layers, nn.Linear(8, CLASSES)).eval()


def own_metadata(name: str, size: int, **more: str) -> dict[str, str]:
    """Return the metadata that our own trainer writes with its weights."""
    texts = {"input_size": json.dumps(size), "mean": json.dumps(MEAN), "std": json.dumps(STD)}
    return {
        "model": name,
        "num_classes": str(CLASSES),
        "classes": json.dumps(list("abcdef")),
        **texts,
        **more,
    }


@pytest.fixture(scope="module")
def timm_model() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(TIMM, num_classes=CLASSES).eval()


@pytest.mark.parametrize("wrapper", [None, "model", "state_dict"])
def test_timm_teacher_gets_its_own_preprocessing(
    timm_model: nn.Module, tmp_path: Path, wrapper: str | None
) -> None:
    path = tmp_path / "teacher.pth"
    torch.save({wrapper: timm_model.state_dict()} if wrapper else timm_model.state_dict(), path)
    teacher = load(TIMM, path)
    images = make_images()
    config: Any = timm_model.pretrained_cfg
    pixels = images * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
    pixels = F.interpolate(pixels, size=config["input_size"][1:], mode="bicubic", antialias=True)
    mean, std = (torch.tensor(config[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        expected = timm_model((pixels - mean) / std)
    torch.testing.assert_close(teacher(images), expected, rtol=1e-4, atol=1e-4)
    assert not teacher(images).requires_grad
    line = "mean 0.485 0.456 0.406, std 0.229 0.224 0.225, 176 px (resized from 32); "
    every = "mean, std and input_size from timm's resnet10t"
    assert teacher.describe_view() == line + every


@pytest.mark.parametrize("asked", [{"mean": (0.1, 0.2, 0.3)}, {"std": (0.4, 0.4, 0.1)}])
def test_either_of_mean_and_std_alone_may_differ(
    asked: dict[str, Any], timm_model: nn.Module, tmp_path: Path
) -> None:
    own = {"mean": MEAN, "std": STD, "input_size": SIZE}
    torch.save(timm_model.state_dict(), tmp_path / "teacher.pth")
    teacher = load(TIMM, tmp_path / "teacher.pth", asked=own | asked)
    images = make_images()
    mean, std = (torch.tensor((own | asked)[key]).view(3, 1, 1) for key in ("mean", "std"))
    pixels = images * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
    with torch.no_grad():
        expected = timm_model((pixels - mean) / std)
    torch.testing.assert_close(teacher(images), expected, rtol=1e-4, atol=1e-4)


def test_run_folder_gives_model_and_preprocessing(timm_model: nn.Module, tmp_path: Path) -> None:
    save_file(
        timm_model.state_dict(), tmp_path / "model.safetensors", metadata=own_metadata(TIMM, SIZE)
    )
    teacher = load("", tmp_path)
    images = make_images()
    with torch.no_grad():
        torch.testing.assert_close(teacher(images), timm_model(images), rtol=1e-5, atol=1e-5)
    assert (teacher.name, teacher.classes, teacher.preprocessing.size) == (
        TIMM,
        tuple("abcdef"),
        SIZE,
    )
    assert teacher.weights is not None and f"weights {teacher.weights[:12]}" in teacher.describe()


def test_our_student_can_be_the_teacher(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {
        "image_size": 32,
        "patch_size": 8,
        "embed_dim": 24,
        "depth": 2,
        "num_heads": 3,
    }
    student = Student(**sizes, num_classes=CLASSES).eval()
    metadata = own_metadata("deit_tiny_distilled_patch16_224", 32, num_heads="3")
    save_file(student.state_dict(), tmp_path / "model.safetensors", metadata=metadata)
    teacher = load(None, tmp_path)
    images = make_images()
    # a teacher has channels-last images and weights, for which some processors have another
    # convolution
    torch.testing.assert_close(teacher(images), student(images).detach())


def test_input_size_of_a_student_must_be_whole_patches(tmp_path: Path) -> None:
    student = Student(
        image_size=32, patch_size=8, embed_dim=24, depth=1, num_heads=3, num_classes=CLASSES
    )
    name = "deit_tiny_distilled_patch16_224"
    metadata = own_metadata(name, 32, num_heads="3")
    save_file(student.state_dict(), tmp_path / "model.safetensors", metadata=metadata)
    said = rf"--teacher-input-size .* multiple of 8, .* {name} \(got 33, from the flags\)"
    refuses(said, None, tmp_path, asked={"input_size": 33})


def test_vision_transformer_is_built_for_its_size(tmp_path: Path) -> None:
    name = "test_vit"
    model = timm.create_model(name, num_classes=CLASSES, img_size=SIZE).eval()
    save_file(model.state_dict(), tmp_path / "model.safetensors", metadata=own_metadata(name, SIZE))
    with torch.no_grad():
        torch.testing.assert_close(load(name, tmp_path)(make_images()), model(make_images()))


def save_script(model: nn.Module, path: Path) -> None:
    torch.jit.script(model).save(path)


def save_export(model: nn.Module, path: Path) -> None:
    batch = torch.export.Dim("batch", min=2)
    torch.export.save(
        torch.export.export(model, (make_images(),), dynamic_shapes=({0: batch},)), path
    )


# torch.export.load of torch 2.11
@pytest.mark.filterwarnings("ignore:The given buffer is not writable")
@pytest.mark.parametrize(("save", "kind"), [(save_script, "torchscript"), (save_export, "export")])
def test_recorded_programs_equal_their_model(
    save: Callable[[nn.Module, Path], None], kind: str, tmp_path: Path
) -> None:
    model = make_convnet()
    images = make_images()
    save(model, tmp_path / "teacher.pt2")
    expected = model(images).detach()
    path = tmp_path / os.fsdecode(b"teach\xe9r.pt2")  # not UTF-8
    (tmp_path / "teacher.pt2").rename(path)
    torch.testing.assert_close(load(kind, path)(images), expected)
    half = load(kind, path, dtype=torch.bfloat16)(images)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, expected, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("thing", ["network", "Network", "make_network", "classify"])
def test_callables_become_teachers(
    thing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_teacher.py").write_text(
        "import torch\n"
        "class Network(torch.nn.Module):\n"
        "    def forward(self, images):\n"
        "        return images.mean((2, 3)).repeat(1, 2)\n"
        "network = Network()\n"
        "def make_network():\n"
        "    return Network()\n"
        "def classify(images):\n"
        "    return images.mean((2, 3)).repeat(1, 2)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    teacher = load(f"own_teacher:{thing}", None)
    images = make_images()
    torch.testing.assert_close(teacher(images), images.mean((2, 3)).repeat(1, 2))
    assert teacher.program is not None
    assert teacher.describe().endswith(f"no weights found, program {teacher.program[:12]}")
    with pytest.raises(ValueError, match="must give"):
        load(f"own_teacher:{thing}", None, num_classes=7)
    with pytest.raises(ValueError, match="has no 'other'"):
        load("own_teacher:other", None)


def test_a_function_that_reads_no_weights_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "plain_function.py").write_text(
        "def classify(images):\n    return images.mean((2, 3)).repeat(1, 2)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    teacher = load("plain_function:classify", tmp_path / "weights.pth")
    assert "does not read" in teacher.describe() and "weights.pth" in teacher.describe()


def test_teacher_is_frozen_and_in_evaluation_mode(timm_model: nn.Module, tmp_path: Path) -> None:
    torch.save(timm_model.state_dict(), tmp_path / "teacher.pth")
    teacher = load(TIMM, tmp_path / "teacher.pth", dtype=torch.bfloat16)
    model: Any = teacher._model
    assert not any(p.requires_grad for p in model.parameters()) and not any(
        m.training for m in model.modules()
    )
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.conv1[0].weight.is_contiguous(memory_format=torch.channels_last)
    images = make_images().half().requires_grad_()
    logits = teacher(images)
    assert (
        logits.dtype == torch.float32 and logits.shape == (3, CLASSES) and not logits.requires_grad
    )
    torch.testing.assert_close(
        logits, load(TIMM, tmp_path / "teacher.pth")(images), rtol=0.05, atol=0.05
    )


def save_teacher(model: nn.Module, folder: Path, size: int = SIZE) -> Path:
    save_file(model.state_dict(), folder / "model.safetensors", own_metadata(TIMM, size))
    return folder


def test_folded_norms_leave_logits_and_identity(timm_model: nn.Module, tmp_path: Path) -> None:
    teacher = load(TIMM, save_teacher(timm_model, tmp_path))
    model: Any = teacher._model
    assert count_norms(timm_model) == 14 and count_norms(model) == 0
    with torch.no_grad():
        expected = timm_model(make_images())
    torch.testing.assert_close(teacher(make_images()), expected, rtol=1e-5, atol=1e-4)
    assert teacher.identity()["weights"] == hash_tensors(timm_model.state_dict())
    assert "14 batch norms folded" in teacher.describe_execution(8)
    count = sum(parameter.numel() for parameter in timm_model.parameters())
    assert f"{count / 1e6:.1f} M parameters" in teacher.describe()


def test_parts_of_a_batch_have_the_logits_of_the_whole(
    timm_model: nn.Module, tmp_path: Path
) -> None:
    images = make_images(8)
    whole = load(TIMM, save_teacher(timm_model, tmp_path))
    parts = load(TIMM, tmp_path, execution=Execution(3))
    torch.testing.assert_close(parts(images), whole(images), rtol=1e-5, atol=1e-5)
    assert torch.equal(parts(images).argmax(1), whole(images).argmax(1))
    memory = [each.measure_memory(8) for each in (whole, parts)]
    assert memory[0].weights == memory[1].weights > 0
    assert memory[1].activations == memory[0].activations * 3 // 8  # type: ignore[operator]


@pytest.mark.parametrize(
    ("view", "size", "launches"),
    [(Preprocessing(MEAN, STD, SIZE), SIZE, 0), (None, SIZE, 1), (None, 48, 3)],
)
def test_images_are_prepared_in_few_launches(
    view: Preprocessing | None, size: int, launches: int, timm_model: nn.Module, tmp_path: Path
) -> None:
    """None where the view is the student's; one to normalise; with a resize, in fp32, three."""
    student = view or Preprocessing((0.5,) * 3, (0.5,) * 3, SIZE)
    save_teacher(timm_model, tmp_path, size)
    teacher = load(TIMM, tmp_path, student=student, dtype=torch.bfloat16)
    images = make_images().bfloat16().contiguous(memory_format=torch.channels_last)
    with StepCounter() as counter:
        prepared = teacher._prepare(images)
    assert counter.launches == launches, counter.operators
    assert prepared.dtype == torch.bfloat16 and prepared.shape[2:] == (size, size)
    assert prepared.is_contiguous(memory_format=torch.channels_last)


def test_a_compiled_teacher_has_the_logits_of_the_plain_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It compiles once for one size of a batch, and once more for all others."""
    torch._dynamo.reset()
    graphs = CountingBackend()
    monkeypatch.setattr(compilation, "BACKEND", graphs)
    preprocessing = Preprocessing(MEAN, STD, SIZE)
    loaded = LoadedTeacher(make_convnet(), "own", View(preprocessing, {}), Path("own"), "a hash")
    device = torch.device("cpu")
    arguments: dict[str, Any] = {"num_classes": CLASSES, "device": device, "dtype": torch.float32}
    plain, teacher = (
        Teacher(loaded, student=preprocessing, execution=Execution(compiled=compiled), **arguments)
        for compiled in (False, True)
    )
    assert "compiled" in teacher.describe_execution(8) and graphs.compiled == 0
    for size, compilations in ((8, 1), (8, 1), (5, 2), (3, 2), (6, 2)):
        images = make_images(size)
        torch.testing.assert_close(teacher(images), plain(images), rtol=1e-5, atol=1e-5)
        assert graphs.compiled == compilations
    with run_uncompiled():
        assert torch.equal(teacher(make_images(7)), plain(make_images(7)))
    assert graphs.calls == 5
    assert teacher.identity() == plain.identity()


@pytest.mark.gpu
@pytest.mark.parametrize("execution", [Execution(), Execution(3), Execution(0, False, True)])
def test_forms_decide_alike_on_a_gpu_in_the_memory_that_is_said(
    execution: Execution, timm_model: nn.Module, tmp_path: Path
) -> None:
    save_teacher(timm_model, tmp_path, 224)
    exact = load(TIMM, tmp_path)(make_images(16, 224)).argmax(1)
    half = torch.bfloat16
    teacher = load(TIMM, tmp_path, device="cuda", dtype=half, execution=execution)
    images = make_images(16, 224).to("cuda", half, memory_format=torch.channels_last)
    teacher(images)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    found = teacher(images).argmax(1).cpu()
    used = torch.cuda.max_memory_allocated() - before
    said = teacher.measure_memory(16).activations
    assert said is not None and used <= 1.5 * said + 2**26  # and the workspace of cuDNN
    assert (found == exact).float().mean() >= 0.9


def refuses(message: str, name: str | None, path: Path | None, **overrides: Any) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load(name, path, **overrides)
    assert "\n" not in str(caught.value)


def test_every_error_is_one_line(timm_model: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "teacher.pth"
    torch.save(timm_model.state_dict(), path)
    refuses("needs weights", TIMM, None)
    refuses("no checkpoint at", TIMM, tmp_path / "none.pth")
    refuses("near: resnet10t", "resnet10tt", path)
    refuses(r"must have 7 classes, as the data set has \(got 6\); train", TIMM, path, num_classes=7)
    refuses(
        "the checkpoint does not fit resnet18: .* is missing; .* and [0-9]+ more", "resnet18", path
    )
    refuses("is not a torchscript file", "torchscript", path)
    refuses(r"--teacher-model must be .* \(got ..\)", "", path)
    refuses("no module 'not_there'", "not_there:teacher", None)
    torch.save(make_convnet(), tmp_path / "pickled.pth")
    refuses("plain weights", TIMM, tmp_path / "pickled.pth")
    save_script(make_convnet(), tmp_path / "script.pt")
    refuses(
        r"must give \(2, 7\) logits .* \(got \(2, 6\)\)",
        "torchscript",
        tmp_path / "script.pt",
        num_classes=7,
    )


@pytest.mark.parametrize("asked", ["resnet18", "deit_tiny_patch16_224"])
def test_the_model_that_a_file_names_is_suggested(
    timm_model: nn.Module, tmp_path: Path, asked: str
) -> None:
    save_file(
        timm_model.state_dict(), tmp_path / "model.safetensors", metadata=own_metadata(TIMM, SIZE)
    )
    refuses(f"; .*/model.safetensors .* of another model: --teacher-model {TIMM}$", asked, tmp_path)


def test_wrong_number_of_class_names_fails(timm_model: nn.Module, tmp_path: Path) -> None:
    metadata = own_metadata(TIMM, SIZE) | {"classes": json.dumps(["a", "b"])}
    save_file(timm_model.state_dict(), tmp_path / "model.safetensors", metadata=metadata)
    refuses(r"\(got 2\)", None, tmp_path)


def test_program_for_another_size_fails(tmp_path: Path) -> None:
    program = torch.export.export(make_convnet(), (make_images(size=24),))
    torch.export.save(program, tmp_path / "teacher.pt2")
    refuses("does not run on a batch of two", "export", tmp_path / "teacher.pt2")
