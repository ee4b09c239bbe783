"""Students, teachers and trained weights of the library."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from fastdeit.data.formats.digits import write_digits
from fastdeit.library.loader import Loader
from fastdeit.library.models import (
    create_student,
    create_teacher,
    evaluate_checkpoint,
    export_model,
    load,
)
from fastdeit.library.train_loader import create_loader
from fastdeit.models.student import Student
from fastdeit.models.teachers.teacher import Teacher


@pytest.fixture(scope="module")
def loader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loader]:
    root = tmp_path_factory.mktemp("digits")
    write_digits(root)
    made = create_loader(root, batch_size=8, input_size=32, mean=(0.5, 0.5, 0.5), device="cpu")
    yield made
    made.close()


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "teacher.safetensors"
    save_file(timm.create_model("test_resnet", num_classes=10).state_dict(), path)
    return path


def test_a_student_fits_a_loader(loader: Loader) -> None:
    student = create_student("deit_tiny_distilled_patch16_224", like=loader, depth=1)
    assert isinstance(student, Student) and student.training
    assert (student.image_size, student.num_classes) == (32, 10)
    images, _ = next(iter(loader))
    assert student(images)[0].shape == (8, 10)


def test_a_student_has_the_size_of_its_name_and_timm_models_work() -> None:
    state = torch.random.get_rng_state()
    assert create_student("deit_tiny_patch16_384", depth=1, device="cpu").image_size == 384
    model = create_student("test_resnet", num_classes=3, seed=1, device="cpu")
    assert model.num_classes == 3 and not isinstance(model, Student)
    assert torch.equal(torch.random.get_rng_state(), state)  # the caller's draws go on


def test_a_teacher_answers_for_the_loaders_images(loader: Loader, weights: Path) -> None:
    teacher = create_teacher("test_resnet", weights, like=loader)
    images, _ = next(iter(loader))
    assert teacher(images).shape == (8, 10)
    assert isinstance(teacher, Teacher)
    assert teacher.preprocessing.mean == timm.get_pretrained_cfg("test_resnet").mean
    both = create_teacher("test_resnet,test_resnet", f"{weights},{weights}", like=loader)
    torch.testing.assert_close(both(images), teacher(images))
    other = create_teacher("test_resnet", weights, like=loader, mean=[0.1, 0.2, 0.3])
    assert isinstance(other, Teacher) and other.preprocessing.mean == (0.1, 0.2, 0.3)


def test_bad_arguments_are_named(loader: Loader, weights: Path) -> None:
    with pytest.raises(ValueError, match="^model must be .*test_resnett"):
        create_teacher("test_resnett", weights, like=loader)
    with pytest.raises(ValueError, match="^std must be three numbers above 0"):
        create_teacher("test_resnet", weights, like=loader, std=(0.0, 1.0, 1.0))
    with pytest.raises(ValueError, match="none.safetensors"):
        create_teacher("test_resnet", "none.safetensors", like=loader)
    with pytest.raises(ValueError, match="^path must be empty with pretrained"):
        create_teacher("test_resnet", weights, like=loader, pretrained=True)
    with pytest.raises(ValueError, match="needs weights: path or pretrained$"):
        create_teacher("test_resnet", like=loader)
    with pytest.raises(ValueError, match=r"^model must be deit_\{tiny.*\(got 'deit_smal'\)"):
        create_student("deit_smal")
    with pytest.raises(ValueError, match="^input_size must be a multiple of the patch size, 16"):
        create_student("deit_tiny_patch16_224", input_size=225)
    for number in (0, -3):
        with pytest.raises(ValueError, match="^num_classes must be 1 or more"):
            create_student("deit_tiny_patch16_224", num_classes=number)
    with pytest.raises(ValueError, match="drop_path must be at least 0"):
        create_student(drop_path=1.0)
    with pytest.raises(TypeError, match="no keyword argument 'drop_path_rate'; near: drop_path"):
        create_student(drop_path_rate=0.1)
    with pytest.raises(ValueError, match="num_heads must be a divisor of the width, 192"):
        create_student("deit_tiny_patch16_224", num_heads=5)


def test_loaded_weights_come_with_transform_and_classes(loader: Loader, weights: Path) -> None:
    loaded = load(weights, model="test_resnet")
    image = Image.new("RGB", (50, 40), "red")
    assert loaded.transform(image).shape == (3, loaded.view.size, loaded.view.size)
    assert loaded.model(loaded.transform(image)[None]).shape == (1, 10)
    root = loader.dataset.root
    scores = evaluate_checkpoint(
        weights, root, model="test_resnet", eval_input_size=32, class_map="position"
    )
    assert 0 <= scores["results"]["model/both/top1"] <= 100
    with pytest.raises(ValueError, match="model must be .*got .test_resnett"):
        load(weights, model="test_resnett")
    with pytest.raises(ValueError, match="^batch_size must be 1 or more"):
        evaluate_checkpoint(weights, root, model="test_resnet", batch_size=0)
    with pytest.raises(ValueError, match="^class_map must be position, number"):
        evaluate_checkpoint(weights, root, model="test_resnet", class_map="gone.txt")


def test_loaded_weights_are_exported(weights: Path, tmp_path: Path) -> None:
    loaded = load(weights, model="test_resnet")
    exported = export_model(loaded, tmp_path / "x", precision="fp16")
    assert exported.form == "folder" and (tmp_path / "x" / "README.md").is_file()
    with pytest.raises(ValueError, match="^path must be a new or empty folder, FILE.onnx"):
        export_model(loaded, tmp_path / "x")
    with pytest.raises(ValueError, match="^heads must be mean, as test_resnet has one head"):
        export_model(loaded, tmp_path / "x.pt2", heads="both")
    with pytest.raises(ValueError, match="^precision must be fp32 or fp16 for ONNX"):
        export_model(loaded, tmp_path / "x.onnx", precision="bf16")
