"""The recipes for CIFAR train on the published files, here with few images and small models."""

import json
from pathlib import Path

import pytest

from fastdeit.commands.runs.train import train_command
from tests.support.cifar import PER_FILE, files10, files100, write_archive, write_files

FORM = "--epochs 1 --warmup-epochs 0 --batch-size 6 --num-workers 1".split()
TINY = "--embed-dim 32 --depth 2 --num-heads 2".split()


@pytest.mark.parametrize("backend", ["exact", "native"])
def test_a_teacher_and_its_student(tmp_path: Path, backend: str) -> None:
    data = write_archive(tmp_path / "data" / "cifar-10-python.tar.gz", files10(False))
    teacher = tmp_path / "teacher"
    shared = ["--data-path", str(data), "--augment-backend", backend, *FORM]
    first = ["--recipe", "cifar10_teacher", "--model", "test_resnet", *shared]
    assert train_command([*first, "--output-dir", str(teacher)]) == 0
    student = ["--recipe", "cifar10", *TINY, *shared, "--output-dir", str(tmp_path / "student")]
    taught = ["--teacher-model", "test_resnet", "--teacher-path", str(teacher)]
    assert train_command([*student, *taught]) == 0
    summary = json.loads((tmp_path / "student" / "summary.json").read_text())
    assert {"model/both/top5", "teacher/both/top1"} <= summary["results"].keys()


def test_the_data_set_of_deit(tmp_path: Path) -> None:
    """torchvision's folder may hold both data sets; deit's CIFAR is CIFAR-100."""
    write_files(tmp_path / "data", files10(True) | files100(True))
    flags = ["--data-set", "CIFAR", "--data-path", str(tmp_path / "data"), *FORM, *TINY]
    alone = ["--recipe", "cifar10", "--distillation-type", "none", *flags]
    assert train_command([*alone, "--output-dir", str(tmp_path / "run")]) == 0
    description = json.loads((tmp_path / "run" / "config.json").read_text())
    assert description["num_classes"] == 100
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert max(json.loads(line)["step"] for line in lines) == PER_FILE // 6
