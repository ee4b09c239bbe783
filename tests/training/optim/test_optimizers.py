"""Parameter groups, AdamW, the schedule against its formula, and the EMA against a loop."""

import math
from typing import Any

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from timm.utils import ModelEmaV3
from torch import nn

from fastdeit.models.student import build_student
from fastdeit.training.optim.ema import Ema
from fastdeit.training.optim.optimizers import build_adamw, parameter_groups
from fastdeit.training.optim.schedule import build_schedule

DECAYED = ("dist_token",)


def names_of(model: nn.Module, group: dict[str, object]) -> set[str]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(parameter)] for parameter in group["params"]}  # type: ignore[attr-defined]


def test_biases_norms_and_tokens_have_no_weight_decay() -> None:
    model = build_student("deit_tiny_distilled_patch16_224", num_classes=5, depth=2, qkv_bias=True)
    groups = parameter_groups(model, 0.05)
    assert sorted(group["weight_decay"] for group in groups) == [0.0, 0.05]
    by_decay = {group["weight_decay"]: names_of(model, group) for group in groups}
    assert by_decay[0.0] | by_decay[0.05] == {name for name, _ in model.named_parameters()}
    assert {
        "pos_embed",
        "cls_token",
        "dist_token",
        "norm.weight",
        "head.bias",
        "blocks.0.attn.qkv.bias",
    } <= by_decay[0.0]
    matrices = ("patch_embed.proj", "head", "head_dist")
    inner = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    expected = {f"{name}.weight" for name in matrices} | {
        f"blocks.{i}.{name}.weight" for i in range(2) for name in inner
    }
    assert by_decay[0.05] == expected


def test_the_distillation_token_decays_as_in_deit_on_request() -> None:
    model = build_student("deit_tiny_distilled_patch16_224", num_classes=5, depth=2)
    ours, deits = (
        {group["weight_decay"]: names_of(model, group) for group in groups}
        for groups in (parameter_groups(model, 0.05), parameter_groups(model, 0.05, None, DECAYED))
    )
    assert deits[0.05] - ours[0.05] == ours[0.0] - deits[0.0] == set(DECAYED)


def settings_of(model: nn.Module, groups: list[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """Return (lr_scale, weight_decay) by the name of a parameter."""
    return {
        name: (group.get("lr_scale", 1.0), group["weight_decay"])
        for group in groups
        for name in names_of(model, group)
    }


@pytest.mark.parametrize("name", ["deit_tiny_distilled_patch16_224", "deit_tiny_patch16_224"])
def test_groups_are_those_of_timms_model(name: str) -> None:
    ours = build_student(name, num_classes=5, depth=3, qkv_bias=True)
    theirs: Any = timm.create_model(name, num_classes=5, depth=3)
    exempt = theirs.no_weight_decay()
    plain = param_groups_weight_decay(theirs, 0.05, no_weight_decay_list=exempt)
    assert settings_of(ours, parameter_groups(ours, 0.05)) == settings_of(theirs, plain)
    layers = param_groups_layer_decay(theirs, 0.05, no_weight_decay_list=exempt, layer_decay=0.5)
    found = settings_of(ours, parameter_groups(ours, 0.05, layer_decay=0.5))
    assert found == settings_of(theirs, layers)
    assert found["norm.weight"] == (0.5, 0.0) and found["head.weight"] == (1.0, 0.05)
    assert found["pos_embed"] == (0.5**4, 0.0)


def test_layer_decay_takes_a_convnet() -> None:
    model = timm.create_model("test_resnet", num_classes=5)
    scales = {scale for scale, _ in settings_of(model, parameter_groups(model, 0.05, 0.5)).values()}
    assert max(scales) == 1.0 and len(scales) > 2


def test_adamw_has_the_values_given() -> None:
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "weight_decay": 0.3}]
    optimizer = build_adamw(groups, 2e-3, (0.8, 0.95), 1e-6)
    (group,) = optimizer.param_groups
    found = {name: group[name] for name in ("lr", "betas", "eps", "fused", "weight_decay")}
    assert found == {
        "lr": 2e-3,
        "betas": (0.8, 0.95),
        "eps": 1e-6,
        "fused": True,
        "weight_decay": 0.3,
    }


@pytest.mark.parametrize(("warmup", "total"), [(5, 50), (0, 20)])
def test_schedule_is_linear_then_cosine(warmup: int, total: int) -> None:
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=1e-3)
    schedule = build_schedule(
        optimizer,
        epochs=total // 5,
        steps_per_epoch=5,
        warmup_epochs=warmup / 5,
        warmup_lr=1e-6,
        min_lr=1e-5,
    )
    # the rate depends on the step alone, so a step back is allowed
    for step in (*range(total), 3):
        schedule.step_update(step)
        cosine = 1e-5 + 0.5 * (1e-3 - 1e-5) * (1 + math.cos(math.pi * step / total))
        linear = 1e-6 + step * (1e-3 - 1e-6) / max(warmup, 1)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(
            linear if step < warmup else cosine, rel=1e-9
        )


# batch 1024; by epoch: (deit's repository, timm's convention)
RATES = {
    0: (1e-6, 1e-6),
    1: (1e-6, 2.008e-4),
    2: (2.008e-4, 4.006e-4),
    3: (4.006e-4, 6.004e-4),
    4: (6.004e-4, 8.002e-4),
    5: (8.002e-4, 9.9932e-4),
    6: (9.9932e-4, 9.9902e-4),
    150: (5.102e-4, 5.050e-4),
    299: (1.0109e-5, 1.0027e-5),
}


@pytest.mark.parametrize(
    ("column", "settings", "within_an_epoch"),
    [
        (1, {}, False),
        (1, {"on_updates": False}, True),
        (0, {"on_updates": False, "lag": 1}, True),
    ],
    ids=["steps", "timm's epochs", "deit's epochs"],
)
def test_rates_are_those_of_deits_and_timms_epochs(
    column: int, settings: dict[str, Any], within_an_epoch: bool
) -> None:
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=1e-3)
    length: dict[str, Any] = {"epochs": 300, "steps_per_epoch": 1251, "warmup_epochs": 5}
    schedule = build_schedule(optimizer, **length, warmup_lr=1e-6, min_lr=1e-5, **settings)

    def rate(step: int) -> float:
        schedule.step_update(step)
        return optimizer.param_groups[0]["lr"]

    for epoch, rates in RATES.items():
        assert rate(epoch * 1251) == pytest.approx(rates[column], rel=1e-4)
        same = rate(epoch * 1251 + 1250) == rate(epoch * 1251)
        assert same == within_an_epoch
    # a function of the step alone: a resumed run has the rates of one that was not interrupted
    assert rate(1251) == pytest.approx(RATES[1][column], rel=1e-4)


def move(
    ema: Ema,
    flats: list[torch.Tensor],
    buffers: dict[str, torch.Tensor],
    step: int,
    skipped: float = 0.0,
) -> None:
    """Update the EMA after a step, as a trainer does."""
    ema.set_rate(step)
    ema.update(flats, buffers, torch.tensor(skipped))


def test_ema_equals_a_loop_and_copies_integers() -> None:
    flats = [torch.randn(7), torch.randn(3)]
    buffers = {"mean": torch.zeros(2), "count": torch.tensor(0)}
    ema = Ema(flats, buffers, 0.9)
    expected = [flat.double() for flat in flats]
    for step in range(5):
        flats = [flat + torch.randn_like(flat) for flat in flats]
        buffers = {"mean": torch.ones(2), "count": torch.tensor(step)}
        move(ema, flats, buffers, step)
        expected = [
            0.9 * old + 0.1 * new.double() for old, new in zip(expected, flats, strict=True)
        ]
    for mine, theirs in zip(ema.flats, expected, strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ema.buffers["mean"], torch.full((2,), 1 - 0.9**5))
    assert ema.buffers["count"] == 4


@pytest.mark.parametrize("decay", [0.99996, 0.9], ids=["rises all the time", "reaches its end"])
def test_warmup_of_the_ema_is_that_of_timms_v3(decay: float) -> None:
    model = nn.Linear(3, 2)
    theirs = ModelEmaV3(model, decay=decay, use_warmup=True)
    parameters = [parameter.detach() for parameter in model.parameters()]
    ours = Ema(parameters, {}, decay, warmup=True)
    for step in range(50):
        for parameter in parameters:
            parameter += torch.linspace(-1, 1, parameter.numel()).view(parameter.shape) * step
        move(ours, parameters, {}, step)
        theirs.update(model, step=step + 1)  # timm's train.py counts the steps that are done
        assert ours.decay_at(step) == theirs.get_decay(step + 1)
    for mine, other in zip(ours.flats, theirs.module.parameters(), strict=True):
        torch.testing.assert_close(mine, other.detach())


@pytest.mark.parametrize("warmup", [False, True])
def test_ema_has_the_bits_of_a_rate_on_the_host_and_skips_on_the_device(warmup: bool) -> None:
    flats = [torch.randn(1001), torch.randn(7)]
    ema = Ema(flats, {"mean": torch.zeros(3)}, 0.9999, warmup=warmup)
    expected = [flat.clone() for flat in flats]
    for step in range(4):
        flats = [flat + torch.randn_like(flat) for flat in flats]
        move(ema, flats, {"mean": torch.ones(3)}, step)
        torch._foreach_lerp_(expected, flats, 1 - ema.decay_at(step))
    before = ema.buffers["mean"].clone()
    move(ema, [flat + 1 for flat in flats], {"mean": torch.full((3,), 5.0)}, 4, skipped=1.0)
    assert all(map(torch.equal, ema.flats, expected)) and torch.equal(ema.buffers["mean"], before)


def test_the_first_update_with_warmup_copies_the_weights() -> None:
    ema = Ema([torch.zeros(3)], {"mean": torch.zeros(1)}, 0.99996, warmup=True)
    move(ema, [torch.ones(3)], {"mean": torch.ones(1)}, 0)
    assert torch.equal(ema.flats[0], torch.ones(3)) and ema.buffers["mean"] == 1
    without = Ema([torch.zeros(3)], {}, 0.99996)
    move(without, [torch.ones(3)], {}, 0)
    assert without.flats[0].max() < 1e-4
