"""The findings on schedules, optimizers and losses that are planted."""

from typing import Any

import pytest
import torch
from timm.scheduler import CosineLRScheduler, PolyLRScheduler
from torch import nn

from fastdeit.audit.findings import Finding, Findings
from fastdeit.audit.network import read_initial_weights
from fastdeit.audit.training import (
    STEPS_PER_EPOCH,
    read_criterion,
    read_optimizer,
    read_schedule,
)
from fastdeit.models.student import Student
from fastdeit.training.losses import CosubLoss, DistillationLoss
from fastdeit.training.optim.optimizers import build_adamw, parameter_groups
from fastdeit.training.optim.schedule import Rates, build_schedule

EPOCHS = 20
STEPS = EPOCHS * STEPS_PER_EPOCH


def make_student() -> Student:
    return Student(embed_dim=24, depth=2, num_heads=2, image_size=32, patch_size=8, num_classes=5)


def read(schedule: Any, lag: int = 0) -> Findings:
    return read_schedule(schedule, 1024, EPOCHS, lag)


def build(**changes: Any) -> Any:
    rates: dict[str, Any] = {"warmup_epochs": 5, "warmup_lr": 1e-6, "min_lr": 1e-5}
    settings = {"epochs": EPOCHS, "steps_per_epoch": STEPS_PER_EPOCH, **rates, **changes}
    return build_schedule(Rates([{}], 1e-3), **settings)


def test_our_schedules_are_cosines() -> None:
    assert read(build())["schedule"] == Finding("cosine to 1e-05, every step", True)
    by_epoch = read(build(on_updates=False, lag=1), lag=1)
    assert by_epoch["schedule"] == Finding("cosine to 1e-05, every epoch, 1 epoch late", True)
    assert by_epoch["warmup"] == Finding("5 epochs", True)


def test_a_lag_that_is_not_named_is_no_cosine() -> None:
    assert read(build(on_updates=False, lag=1))["schedule"].is_equal is False


@pytest.mark.parametrize(
    "schedule",
    [
        CosineLRScheduler(
            Rates([{}], 1e-3), t_initial=STEPS, lr_min=1e-5, k_decay=2.0, t_in_epochs=False
        ),
        PolyLRScheduler(Rates([{}], 1e-3), t_initial=STEPS, lr_min=1e-5, t_in_epochs=False),
    ],
    ids=["k_decay", "polynomial"],
)
def test_another_fall_of_the_rate_is_measured(schedule: Any) -> None:
    found = read(schedule)["schedule"]
    assert found == Finding("no cosine to 1e-05, every step", False)


def test_a_decay_of_vectors_or_none_of_layers_differs() -> None:
    student = make_student()
    weights = dict(student.named_parameters())
    whole = build_adamw(
        [{"params": list(weights.values()), "weight_decay": 0.05}], 1e-3, (0.9, 0.999), 1e-8
    )
    assert read_optimizer(whole, student)["optimizer"].is_equal is False
    spared = [one for name, one in weights.items() if "mlp.fc1.weight" in name]
    groups = parameter_groups(student, 0.05)
    for group in groups:
        group["params"] = [one for one in group["params"] if all(one is not x for x in spared)]
    groups.append({"params": spared, "weight_decay": 0.0})
    found = read_optimizer(build_adamw(groups, 1e-3, (0.9, 0.999), 1e-8), student)["optimizer"]
    assert found.is_equal is False and "blocks.0.mlp.fc1.weight" in found.text


def test_another_optimizer_with_the_same_decay_differs() -> None:
    student = make_student()
    groups = parameter_groups(student, 0.05)
    adam = torch.optim.Adam(groups, 1e-3, eps=1e-8)
    assert read_optimizer(adam, student)["optimizer"].text.startswith("Adam, weight decay 0.05")
    assert read_optimizer(adam, student)["optimizer"].is_equal is False


def test_the_loss_of_two_submodels_is_no_distillation() -> None:
    found = read_criterion(CosubLoss())
    assert {name for name, finding in found.items() if finding.is_equal} == set()
    usual = read_criterion(DistillationLoss())
    assert all(finding.is_equal for finding in usual.values()) and usual.keys() == found.keys()


def test_initial_weights_of_another_spread_differ() -> None:
    student = make_student()
    assert read_initial_weights(student).is_equal is True
    with torch.no_grad():
        student.get_parameter("blocks.1.mlp.fc1.weight").mul_(1.5)
    assert read_initial_weights(student).is_equal is False
    assert read_initial_weights(nn.Conv2d(3, 3, 3)) == Finding("", None)
